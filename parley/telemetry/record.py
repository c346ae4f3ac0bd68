"""One request as it is told to the world: `Progress` while it runs, a frozen `Record` once it has ended.

Rules that always hold: every request that came in gives exactly one record; no text of a user is in it, and of what a
client made up only the request id and the trace context, which are checked for their form. Times are seconds of one
monotonic clock.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from parley.contract.errors import WIRE, ErrorCode

FINISH_REASONS = ("stop", "length", "abort", "error")
"""How an answer ends: complete, cut at its token limit, given up because its client left, failed."""

PROBES = frozenset({"/livez", "/readyz", "/healthz", "/metrics"})
"""Routes that machines ask every few seconds; sinks may leave them out."""


@dataclass(frozen=True)
class Head:
    """What is known of a request when it arrives."""

    request_id: str
    method: str
    route: str
    """The route's template, not the path that was asked for."""
    arrived: float
    traceparent: str | None = None
    """The W3C trace context that the client sent."""


@dataclass(frozen=True)
class AnswerRecord:
    """One answer that was begun, from the door in front of the engine to its end. None: it never came so far."""

    model: str
    queued: float
    started: float | None
    """When it had a place in the batch."""
    first_token: float | None
    last_token: float | None
    prompt_tokens: int | None
    """None where an upstream does not tell."""
    cached_tokens: int | None
    """None where the engine does not tell."""
    completion_tokens: int
    finish_reason: str
    """One of `FINISH_REASONS`."""

    @property
    def queue_time(self) -> float | None:
        """Seconds that it waited for a place in the batch."""
        return _between(self.queued, self.started)

    @property
    def prefill_time(self) -> float | None:
        """Seconds from its place in the batch to its first token."""
        return _between(self.started, self.first_token)

    @property
    def decode_time(self) -> float | None:
        """Seconds from its first token to its last."""
        return _between(self.first_token, self.last_token)

    @property
    def inference_time(self) -> float | None:
        """Seconds from its place in the batch to its last token."""
        return _between(self.started, self.last_token)

    @property
    def time_per_output_token(self) -> float | None:
        """Mean seconds between its tokens; None for fewer than two."""
        if self.decode_time is None or self.completion_tokens < 2:
            return None
        return self.decode_time / (self.completion_tokens - 1)


@dataclass(frozen=True)
class Record:
    """One HTTP request that has ended."""

    head: Head
    ended: float
    status: int
    """The HTTP status; 499 for a client that left before its answer was whole."""
    code: str | None
    """Why it failed, if it did: an `ErrorCode`, or the engine's state for `/readyz`."""
    key: str | None
    """The name of the API key."""
    answers: tuple[AnswerRecord, ...]
    """Empty where nothing was asked of the engine, several with `n`."""

    @property
    def duration(self) -> float:
        """Seconds from the request's arrival to its end."""
        return self.ended - self.head.arrived

    def time_to_first_token(self, answer: AnswerRecord) -> float | None:
        """Seconds from the request's arrival to an answer's first token."""
        return _between(self.head.arrived, answer.first_token)


@dataclass
class Progress:
    """One request while it runs: what is known so far."""

    head: Head
    observe_gap: Callable[[float, int], None] = lambda seconds, tokens: None
    """Is told the seconds between two tokens, and between how many: once a wake-up, while the answer is made."""
    key: str | None = None
    status: int = 0
    code: str | None = None
    whole: bool = False
    """Whether the last byte of the response was handed to the server."""
    answers: list[AnswerRecord] = field(default_factory=list)

    def record(self, now: float) -> Record:
        """What is told of the request, once it has ended."""
        status, code = self.status, self.code
        if not self.whole and code is None:
            code = ErrorCode.CLIENT_CLOSED_REQUEST
            status = WIRE[code].status
        return Record(self.head, now, status, code, self.key, tuple(self.answers))


_underway: ContextVar[Progress | None] = ContextVar("parley_request", default=None)


def begin(progress: Progress) -> None:
    """Makes a request the one that the code of this context works for."""
    _underway.set(progress)


def current() -> Progress:
    """The request that this context works for; outside of any, one that nobody is told of."""
    return _underway.get() or Progress(Head("", "", "", 0.0))


def _between(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else end - begin
