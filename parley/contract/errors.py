"""Every error a client can meet: one enum, one table to HTTP, one shape (OpenAI's).

The shape is OpenAI's public error object (openai-openapi, `ErrorResponse`): all four keys are always present,
`code` is a string and `param` names the field at fault, or is null.
"""

from enum import StrEnum
from typing import Any, NamedTuple


class ErrorCode(StrEnum):
    """What went wrong, in the words that clients may match on."""

    INVALID_JSON = "invalid_json"
    INVALID_VALUE = "invalid_value"
    MISSING_FIELD = "missing_required_parameter"
    UNSUPPORTED_PARAMETER = "unsupported_parameter"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    INVALID_API_KEY = "invalid_api_key"
    PERMISSION_DENIED = "permission_denied"
    NOT_FOUND = "not_found"
    MODEL_NOT_FOUND = "model_not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    IDEMPOTENCY_CONFLICT = "idempotency_conflict"
    BODY_TOO_LARGE = "body_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    QUEUE_FULL = "queue_full"
    CLIENT_CLOSED_REQUEST = "client_closed_request"
    INTERNAL_ERROR = "internal_error"
    ENGINE_ERROR = "engine_error"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_REFUSED = "upstream_refused"
    """The upstream would refuse the same request again: its operator or its filter says no."""
    ENGINE_UNAVAILABLE = "engine_unavailable"
    DRAINING = "draining"
    DEADLINE_EXCEEDED = "deadline_exceeded"


class Wire(NamedTuple):
    """How one code is shown over HTTP: the status and OpenAI's `type`."""

    status: int
    type: str


WIRE: dict[ErrorCode, Wire] = {
    ErrorCode.INVALID_JSON: Wire(400, "invalid_request_error"),
    ErrorCode.INVALID_VALUE: Wire(400, "invalid_request_error"),
    ErrorCode.MISSING_FIELD: Wire(400, "invalid_request_error"),
    ErrorCode.UNSUPPORTED_PARAMETER: Wire(400, "invalid_request_error"),
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: Wire(400, "invalid_request_error"),
    ErrorCode.INVALID_API_KEY: Wire(401, "invalid_request_error"),
    ErrorCode.PERMISSION_DENIED: Wire(403, "invalid_request_error"),
    ErrorCode.NOT_FOUND: Wire(404, "invalid_request_error"),
    ErrorCode.MODEL_NOT_FOUND: Wire(404, "invalid_request_error"),
    ErrorCode.METHOD_NOT_ALLOWED: Wire(405, "invalid_request_error"),
    ErrorCode.IDEMPOTENCY_CONFLICT: Wire(409, "invalid_request_error"),
    ErrorCode.BODY_TOO_LARGE: Wire(413, "invalid_request_error"),
    ErrorCode.UNSUPPORTED_MEDIA_TYPE: Wire(415, "invalid_request_error"),
    ErrorCode.RATE_LIMIT_EXCEEDED: Wire(429, "rate_limit_error"),
    ErrorCode.QUEUE_FULL: Wire(429, "rate_limit_error"),
    ErrorCode.CLIENT_CLOSED_REQUEST: Wire(499, "invalid_request_error"),
    ErrorCode.INTERNAL_ERROR: Wire(500, "server_error"),
    ErrorCode.ENGINE_ERROR: Wire(500, "server_error"),
    ErrorCode.UPSTREAM_ERROR: Wire(502, "server_error"),
    ErrorCode.UPSTREAM_REFUSED: Wire(502, "server_error"),
    ErrorCode.ENGINE_UNAVAILABLE: Wire(503, "server_error"),
    ErrorCode.DRAINING: Wire(503, "server_error"),
    ErrorCode.DEADLINE_EXCEEDED: Wire(504, "server_error"),
}


class ParleyError(Exception):
    """An error with a code; the API turns it into a response, the client raises it from one.

    Args:
        code: what went wrong.
        message: one sentence for a person; never holds text that a user sent.
        param: the request field at fault, as a path such as `messages[2].role`.
        retry_after: seconds after which a retry is worth it, if that is known.
    """

    def __init__(
        self, code: ErrorCode, message: str, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after

    @property
    def status(self) -> int:
        """The HTTP status of this error's code."""
        return WIRE[self.code].status

    def body(self) -> dict[str, Any]:
        """The JSON body: `{"error": {"message", "type", "param", "code"}}`."""
        return {
            "error": {
                "message": self.message,
                "type": WIRE[self.code].type,
                "param": self.param,
                "code": self.code.value,
            }
        }
