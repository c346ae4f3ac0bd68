"""One request as it is told to the world: `Progress` while it runs, a frozen `Record` once it has ended.

Rules that always hold: no text of a user and nothing that a client made up is in a record, except the request id, which
is limited to harmless characters; every request that came in gives exactly one record.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

from parley.contract.errors import WIRE, ErrorCode

FINISH_REASONS = ("stop", "length", "abort", "error")
"""How an answer can end: complete, cut at its token limit, given up because its client left, failed."""

_CLIENT_GONE = ErrorCode.CLIENT_CLOSED_REQUEST


@dataclass(frozen=True)
class Record:
    """One HTTP request that has ended. Times are seconds of one monotonic clock; None where it never came so far."""

    request_id: str
    method: str
    route: str
    """The route's template, not the path that was asked for."""
    traceparent: str | None
    """The W3C trace context that the client sent."""
    key: str | None
    """The name of the API key."""
    status: int
    """The HTTP status; 499 for a client that left before its answer was whole."""
    code: ErrorCode | None
    arrived: float
    ended: float
    queued: float | None
    """When it was let in to wait for the engine; None for a request without an answer."""
    started: float | None
    """When it had a place in the batch."""
    first_token: float | None
    last_token: float | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    finish_reason: str | None
    """One of `FINISH_REASONS`; None where no answer was begun."""

    @property
    def duration(self) -> float:
        """Seconds from the request's head to the last byte of its answer."""
        return self.ended - self.arrived

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from arrival to the first token."""
        return _between(self.arrived, self.first_token)

    @property
    def queue_time(self) -> float | None:
        """Seconds that it waited for a place in the batch."""
        return _between(self.queued, self.started)

    @property
    def prefill_time(self) -> float | None:
        """Seconds from its place in the batch to the first token."""
        return _between(self.started, self.first_token)

    @property
    def decode_time(self) -> float | None:
        """Seconds from the first token to the last."""
        return _between(self.first_token, self.last_token)

    @property
    def inference_time(self) -> float | None:
        """Seconds from its place in the batch to the last token."""
        return _between(self.started, self.last_token)

    @property
    def time_per_output_token(self) -> float | None:
        """Mean seconds between its tokens; None for fewer than two."""
        if self.decode_time is None or self.completion_tokens < 2:
            return None
        return self.decode_time / (self.completion_tokens - 1)


@dataclass
class Progress:
    """One request while it runs: what is known so far. Times are seconds of the monotonic clock.

    Several answers to one request (`n`) add up: the first one's start, the last one's end, all their tokens.
    """

    request_id: str
    method: str
    route: str
    arrived: float
    observe_gap: Callable[[float, int], None]
    """Is told the seconds between tokens, and between how many: once a wake-up, not once a request."""
    traceparent: str | None = None
    key: str | None = None
    status: int = 0
    whole: bool = False
    """Whether the last byte of the response was handed to the server."""
    code: ErrorCode | None = None
    queued: float | None = None
    started: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str | None = None

    def tokens(self, count: int, before: float | None, now: float) -> None:
        """Counts tokens of an answer that arrived together.

        Args:
            count: how many.
            before: when the same answer's last ones had arrived; None for its first.
            now: the time.
        """
        self.completion_tokens += count
        self.last_token = now
        if before is not None:
            self.observe_gap((now - before) / count, count)
        elif self.first_token is None:
            self.first_token = now

    def finished(self, reason: str, prompt_tokens: int, cached_tokens: int) -> None:
        """An answer is complete."""
        self.finish_reason = reason
        self.prompt_tokens, self.cached_tokens = prompt_tokens, cached_tokens

    def failed(self, code: ErrorCode) -> None:
        """The request, or an answer to it, failed."""
        self.code = code

    def record(self, now: float) -> Record:
        """What is told of the request, once it has ended."""
        left = not self.whole and self.code is None
        code = _CLIENT_GONE if left else self.code
        status = WIRE[_CLIENT_GONE].status if left else self.status
        return Record(
            request_id=self.request_id,
            method=self.method,
            route=self.route,
            traceparent=self.traceparent,
            key=self.key,
            status=status,
            code=code,
            arrived=self.arrived,
            ended=now,
            queued=self.queued,
            started=self.started,
            first_token=self.first_token,
            last_token=self.last_token,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            completion_tokens=self.completion_tokens,
            finish_reason=self._reason(code),
        )

    def _reason(self, code: ErrorCode | None) -> str | None:
        if self.queued is None:
            return None
        if code is None:
            return self.finish_reason
        return "abort" if code is _CLIENT_GONE else "error"


_underway: ContextVar[Progress | None] = ContextVar("parley_request", default=None)


def begin(progress: Progress) -> None:
    """Makes a request the one that the code of this context works for."""
    _underway.set(progress)


def current() -> Progress | None:
    """The request that this context works for; None outside of any."""
    return _underway.get()


def _between(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else end - begin
