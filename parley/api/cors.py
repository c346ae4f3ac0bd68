"""Pages of other origins: which may ask, and what of an answer they may read. Right on refusals too."""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from parley.api.errors import HEADER, ErrorResponse
from parley.contract.errors import ErrorCode, ParleyError
from parley.telemetry.record import current

READABLE = (
    "x-request-id",
    "retry-after",
    "retry-after-ms",
    "idempotent-replayed",
    "x-context-dropped-messages",
    "x-context-dropped-tokens",
    HEADER,
)
"""Headers of answers that scripts may read, beside those that they always may."""


class Cors(CORSMiddleware):
    """ASGI middleware, outside of everything that may refuse a request.

    Args:
        app: what lies behind.
        origins: such as `https://chat.example.com`, or `*` for all. Cookies are never taken.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        methods = ("GET", "POST", "PUT", "PATCH", "DELETE")
        super().__init__(app, origins, methods, allow_headers=("*",), expose_headers=READABLE)

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a browser that asks first; a refusal has the shape of all errors."""
        response = super().preflight_response(request_headers)
        if response.status_code >= 400:
            message = "This service does not take requests of this kind from pages of this origin."
            response = ErrorResponse(ParleyError(ErrorCode.PERMISSION_DENIED, message))
        response.headers["x-request-id"] = current().head.request_id
        return response
