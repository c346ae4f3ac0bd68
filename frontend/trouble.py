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
}


def meaning(failure: ParleyError) -> str:
    """One sentence; the failure's own message tells the details."""
    if isinstance(failure, Unreachable):
        return "The service cannot be reached."
    return _MEANING.get(failure.code, "The question could not be answered.")


def advice(failure: ParleyError) -> str:
    """What to do, for a failure that keeps the conversation."""
    when = "now" if failure.retry_after is None else f"in {failure.retry_after:.0f} s"
    return f"Nothing is lost: your message is above, and you can try again {when}."
