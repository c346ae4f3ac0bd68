"""Errors as responses: ours, and what others raise on our paths, all in one shape."""

import math
import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse

from parley.contract.errors import ErrorCode, ParleyError

HEADER = "x-parley-error"
"""Carries the error code of every error response; its absence marks a response that is not ours."""

_FOREIGN = {
    401: (ErrorCode.INVALID_API_KEY, "An API key is needed."),
    403: (ErrorCode.PERMISSION_DENIED, "This is not allowed with the given API key."),
    404: (ErrorCode.NOT_FOUND, "There is no such route here; GET /docs lists those that there are."),
    405: (ErrorCode.METHOD_NOT_ALLOWED, "This route does not take that method; GET /docs lists those that it takes."),
    413: (ErrorCode.BODY_TOO_LARGE, "The request body is too large."),
    415: (ErrorCode.UNSUPPORTED_MEDIA_TYPE, "Send the body as application/json."),
    429: (ErrorCode.QUEUE_FULL, "The service is overloaded; please retry later."),
    503: (ErrorCode.ENGINE_UNAVAILABLE, "The service is not ready; please retry later."),
    504: (ErrorCode.DEADLINE_EXCEEDED, "The request took too long."),
}
"""What a status means when the framework below us chose it."""


_MORE_HEADERS = {
    # The next try is to find another replica; on this connection it would meet the same one.
    ErrorCode.DRAINING: {"connection": "close"},
    ErrorCode.INVALID_API_KEY: {"www-authenticate": "Bearer"},
    # openai-python tries a 409 again by itself, and the same key with another body never gets better.
    ErrorCode.IDEMPOTENCY_CONFLICT: {"x-should-retry": "false"},
    ErrorCode.UPSTREAM_REFUSED: {"x-should-retry": "false"},  # likewise a 502
}


_PAUSES = dict.fromkeys(
    (ErrorCode.QUEUE_FULL, ErrorCode.RATE_LIMIT_EXCEEDED, ErrorCode.ENGINE_UNAVAILABLE, ErrorCode.DRAINING), 1.0
)
"""Seconds after which a retry is worth it, where nobody knows better."""


class ErrorResponse(JSONResponse):
    """A `ParleyError` over HTTP, with `Retry-After` where a retry is worth it."""

    def __init__(self, error: ParleyError) -> None:
        headers = {HEADER: error.code.value, **_MORE_HEADERS.get(error.code, {})}
        seconds = _PAUSES.get(error.code) if error.retry_after is None else error.retry_after
        if seconds is not None:
            milliseconds = math.ceil(seconds * 1000)
            headers["retry-after"] = str(math.ceil(milliseconds / 1000))  # of these, so that the two agree
            headers["retry-after-ms"] = str(milliseconds)
        super().__init__(error.body(), error.status, headers)


def from_status(status: int) -> ParleyError:
    """The error that stands for a status chosen below us."""
    fallback = ErrorCode.INVALID_VALUE if status < 500 else ErrorCode.INTERNAL_ERROR
    message = "The request is not valid." if status < 500 else "The service failed on this request; it was logged."
    code, message = _FOREIGN.get(status, (fallback, message))
    return ParleyError(code, message)


def from_validation(faults: Sequence[Any]) -> ParleyError:
    """The first fault of a pydantic validation, named by its field.

    Args:
        faults: `ValidationError.errors()`, or FastAPI's list of the same shape.
    """
    fault = faults[0]
    path = field_path([part for part in fault["loc"] if part not in _SCAFFOLDING])
    told = _told_param(fault["msg"])
    param, where = path or told, f"{path}: " if path else "" if told else "body: "
    if fault["type"] in ("missing", "unknown_form"):
        return ParleyError(ErrorCode.MISSING_FIELD, f"{where}{_lowered(fault['msg'])}", param or None)
    if fault["type"] == "extra_forbidden":
        return ParleyError(ErrorCode.UNSUPPORTED_PARAMETER, f"{where}this parameter is not supported", param)
    return ParleyError(ErrorCode.INVALID_VALUE, f"{where}{_lowered(fault['msg'])}", param or None)


_SCAFFOLDING = frozenset(
    {"body", "conversation_form", "history_form", "text-form", "parts-form", "list-form"}
    | {"int", "float", "str", "[key]", "constrained-str", "list[constrained-str]"}
)
"""Parts of pydantic's locations that name our own types and not the client's fields."""

_PLAIN_NAME = re.compile(r"\w{1,64}", re.ASCII)
_LEADING_PARAM = re.compile(r"(?:Value error, )?([a-z_]+): ")


def field_path(parts: Sequence[Any]) -> str:
    """`["messages", 2, "role"]` as `messages[2].role`; what a client made up and is no plain word is `?`."""
    path = ""
    for part in parts:
        name = part if _PLAIN_NAME.fullmatch(str(part)) else "?"
        path += f"[{part}]" if isinstance(part, int) else f".{name}" if path else str(name)
    return path


def _told_param(message: str) -> str:
    """The field that a check of several fields together puts before its message."""
    told = _LEADING_PARAM.match(message)
    return told[1] if told else ""


def _lowered(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


async def on_parley_error(_: Request, error: Exception) -> ErrorResponse:
    """FastAPI's handler for `ParleyError`."""
    assert isinstance(error, ParleyError)
    return ErrorResponse(error)


async def on_invalid(_: Request, error: Exception) -> ErrorResponse:
    """FastAPI's handler for its own `RequestValidationError`."""
    return ErrorResponse(from_validation(error.errors()))  # type: ignore[attr-defined]


def validation_error(error: ValidationError) -> ParleyError:
    """A pydantic error as ours; what the user sent is not in it."""
    return from_validation(error.errors(include_input=False, include_context=False, include_url=False))
