"""What an upstream's refusals and failures mean to our clients.

None of its words are passed on: they may quote a prompt, or the key that it was asked with. Its status, and codes and
fields that we know ourselves, tell enough.
"""

import time
from collections.abc import Mapping
from email.utils import mktime_tz, parsedate_tz
from http import HTTPStatus
from typing import Any

import msgspec

from parley.contract.errors import WIRE, ErrorCode, ParleyError
from parley.engine.runner import Sampling

BROKEN = "The connection to the upstream broke before the answer was complete."
LATE = "The upstream took too long; the answer was given up."
STRANGE = "What the upstream sent is not a chat completion."

_CLIENTS_FAULT = {400, 413, 422}
_PASSING = {408, 409, 429, 500, 502, 503, 504, 529}
"""Statuses after which another try may succeed; 529 is Anthropic's word for overload."""

_CODES = {
    401: ErrorCode.UPSTREAM_REFUSED,
    403: ErrorCode.UPSTREAM_REFUSED,
    404: ErrorCode.UPSTREAM_REFUSED,
    408: ErrorCode.DEADLINE_EXCEEDED,
    429: ErrorCode.RATE_LIMIT_EXCEEDED,
    503: ErrorCode.ENGINE_UNAVAILABLE,
    504: ErrorCode.DEADLINE_EXCEEDED,
    529: ErrorCode.ENGINE_UNAVAILABLE,
}
_MESSAGES = {
    401: "The upstream refused this service's API key.",
    403: "The upstream does not allow this service what it asked for.",
    404: "The upstream does not know the model or the route that this service is set to.",
    408: LATE,
    429: "The upstream has reached its rate limit or quota; please retry later.",
    503: "The upstream is overloaded or down; please retry later.",
    504: LATE,
    529: "The upstream is overloaded; please retry later.",
}
_LONGEST_RETRY_AFTER = 3600.0
_TOO_LONG = ("maximum context length", "model's context length", "available context size")
"""Words of vLLM's, SGLang's and llama.cpp's messages about a prompt that is too long."""


class Fault(Exception):
    """A try that failed before the first byte of an answer.

    Args:
        error: what our client is told if it was the last try.
        passing: whether another try may succeed.
    """

    def __init__(self, error: ParleyError, passing: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.passing = passing


class Unreachable(ParleyError):
    """There is no connection to the upstream."""

    def __init__(self) -> None:
        super().__init__(ErrorCode.ENGINE_UNAVAILABLE, "The upstream cannot be reached.", retry_after=1.0)


class Told(msgspec.Struct):
    """The part of OpenAI's error object that is looked at; servers put anything into these fields."""

    code: Any = None
    param: Any = None
    message: Any = None


def from_response(status: int, headers: Mapping[str, str], body: bytes) -> Fault:
    """What a response other than an event stream means."""
    told = _told(body)
    error = _error(status, told, retry_after(headers, time.time()))
    return Fault(error, status in _PASSING and told.code not in ("insufficient_quota", ErrorCode.UPSTREAM_REFUSED))


def from_event(error: Any) -> ParleyError:
    """What an error in the middle of an event stream means; vLLM puts an HTTP status into its code."""
    told = _converted(error)
    if isinstance(told.code, int) and told.code in _CODES.keys() | _CLIENTS_FAULT:
        return _error(told.code, told, None)
    known = _known(told)
    return _error(WIRE[known].status if known else HTTPStatus.BAD_GATEWAY, told, None)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that the upstream asks to wait (RFC 9110, section 10.2.3, and OpenAI's `retry-after-ms`).

    Args:
        headers: of the response.
        now: Unix time.
    """
    seconds = _number(headers.get("retry-after-ms"), 1000)
    if seconds is None:
        seconds = _number(headers.get("retry-after"), 1)
    if seconds is None:
        seconds = _until(headers.get("retry-after", ""), now)
    return None if seconds is None else min(max(seconds, 0.0), _LONGEST_RETRY_AFTER)


def _until(date: str, now: float) -> float | None:
    parts = parsedate_tz(date)
    try:
        return mktime_tz(parts) - now if parts else None
    except (ValueError, OverflowError):  # a date that there is none of
        return None


def _number(text: str | None, divisor: int) -> float | None:
    try:
        value = float(text or "") / divisor
    except ValueError:
        return None
    return value if value == value else None


def _told(body: bytes) -> Told:
    try:
        content = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Told()
    # SGLang and older vLLM put the fields into the body itself.
    return _converted(content.get("error", content) if isinstance(content, dict) else None)


def _converted(error: Any) -> Told:
    return msgspec.convert(error, Told) if isinstance(error, dict) else Told()


def _error(status: int, told: Told, wait: float | None) -> ParleyError:
    if status in _CLIENTS_FAULT:
        return _clients_fault(status, told)
    if told.code == ErrorCode.UPSTREAM_REFUSED:  # another Parley's word
        return ParleyError(ErrorCode.UPSTREAM_REFUSED, "What the upstream asks in turn refuses this.")
    message = _MESSAGES.get(status, f"The upstream answered with HTTP {status}.")
    return ParleyError(_CODES.get(status, ErrorCode.UPSTREAM_ERROR), message, retry_after=wait)


def _clients_fault(status: int, told: Told) -> ParleyError:
    """A request that the upstream does not take; the field at fault is told if it is one that we sent."""
    known = _known(told)
    if known is ErrorCode.CONTEXT_LENGTH_EXCEEDED:
        return ParleyError(
            known, "The conversation is longer than the model's context length at the upstream.", "messages"
        )
    fields = (*Sampling.__struct_fields__, "messages", "model")
    param = told.param if told.param in fields else None
    what = f"{param} as this request has it" if param else "this request"
    code = known if known and WIRE[known].status == HTTPStatus.BAD_REQUEST else ErrorCode.INVALID_VALUE
    return ParleyError(code, f"The upstream refused {what} (HTTP {status}).", param)


def _known(told: Told) -> ErrorCode | None:
    """OpenAI's code where it is one of ours too; some say only in their message that a prompt is too long."""
    if any(words in str(told.message) for words in _TOO_LONG):
        return ErrorCode.CONTEXT_LENGTH_EXCEEDED
    try:
        return ErrorCode(told.code)
    except ValueError:
        return None
