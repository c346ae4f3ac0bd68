"""What a failure means to a person."""

from parley.client import Unreachable
from parley.contract.errors import ErrorCode, ParleyError

_MEANING = {
    ErrorCode.QUEUE_FULL: "The service is busy.",
    ErrorCode.RATE_LIMIT_EXCEEDED: "The service is busy.",
    ErrorCode.ENGINE_UNAVAILABLE: "The model is not ready.",
    ErrorCode.DRAINING: "The service is about to restart.",
    ErrorCode.DEADLINE_EXCEEDED: "The answer took too long.",
    ErrorCode.UPSTREAM_ERROR: "The answer broke off.",
    ErrorCode.ENGINE_ERROR: "The model failed.",
    ErrorCode.INVALID_API_KEY: "The service does not accept the key in PARLEY_API_KEY.",
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: "The conversation is too long for the model.",
    ErrorCode.BODY_TOO_LARGE: "The conversation is too long for the service.",
}

_PASSING = {
    ErrorCode.QUEUE_FULL,
    ErrorCode.RATE_LIMIT_EXCEEDED,
    ErrorCode.CLIENT_CLOSED_REQUEST,
    ErrorCode.DEADLINE_EXCEEDED,
}
"""Refusals after which the same request may be answered."""


def meaning(failure: ParleyError) -> str:
    """One sentence; the failure's own message tells the details."""
    if isinstance(failure, Unreachable):
        return "The service cannot be reached."
    return _MEANING.get(failure.code, "The question could not be answered.")


def advice(failure: ParleyError) -> str:
    """What to do, for a failure that keeps the conversation."""
    kept = "Nothing is lost: your message is above"
    if _too_long(failure):
        return f"{kept}. Send a shorter one, or clear the conversation."
    if failure.code is ErrorCode.UPSTREAM_REFUSED or (failure.status < 500 and failure.code not in _PASSING):
        return f"{kept}, but the same again would be refused as well."
    when = "now" if failure.retry_after is None else f"in {failure.retry_after:.0f} s"
    return f"{kept}, and you can try again {when}."


def _too_long(failure: ParleyError) -> bool:
    """Whether a shorter conversation would do; the service refuses too many messages, or a long one, as a value."""
    if failure.code is ErrorCode.INVALID_VALUE:
        return (failure.param or "").startswith("messages")
    return failure.code in (ErrorCode.CONTEXT_LENGTH_EXCEEDED, ErrorCode.BODY_TOO_LARGE)
