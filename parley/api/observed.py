"""Observed: an answer's events on their way from the engine to a route, counted and timed."""

import logging
import time

from parley.api.admission import Place
from parley.engine.engine import Delta, Event, Failure
from parley.telemetry.record import AnswerRecord, Progress

logger = logging.getLogger("parley.api")


class Observed:
    """One answer, event by event.

    Args:
        progress: the request that it answers.
        prompt_tokens: as counted here; None where an upstream counts them, who may tell at the answer's end.
    """

    def __init__(self, progress: Progress, prompt_tokens: int | None) -> None:
        self._progress = progress
        self.prompt_tokens = prompt_tokens
        self.refused = False
        """Whether the engine did not take it."""
        self._first: float | None = None
        self._last: float | None = None
        self._tokens = 0
        self._cached: int | None = None
        self._reason = "abort"

    def see(self, event: Event) -> None:
        """Takes the next event in."""
        if isinstance(event, Delta):
            self._count(event.tokens)
        elif isinstance(event, Failure):
            logger.error("the engine failed on this request: %s", event.message)
            self._reason, self._progress.code = "error", event.code
        else:
            # What was seen stays counted: not every upstream tells how many there were.
            self._count(max(0, (event.completion_tokens or 0) - self._tokens))
            self._reason, self._cached = event.reason, event.cached_tokens
            self.prompt_tokens = event.prompt_tokens

    @property
    def tokens(self) -> int:
        """How many the answer has so far."""
        return self._tokens

    def close(self, model: str, place: Place) -> None:
        """Tells of the answer, once nobody reads it any more; of none, if the engine did not take it."""
        if self.refused:
            return
        answer = AnswerRecord(
            model=model,
            queued=place.entered,
            started=place.started,
            first_token=self._first,
            last_token=self._last,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self._cached,
            completion_tokens=self._tokens,
            finish_reason=self._reason,
        )
        self._progress.answers.append(answer)

    def _count(self, tokens: int) -> None:
        if not tokens:
            return
        now = time.monotonic()
        if self._last is None:
            self._first = now
        else:
            self._progress.observe_gap((now - self._last) / tokens, tokens)
        self._last = now
        self._tokens += tokens
