"""Request bodies: taken in within limits of size and time, only as JSON, and parsed once for all checks."""

import asyncio
from contextlib import suppress
from typing import Any

import msgspec
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from parley.api.errors import from_status
from parley.contract.errors import ErrorCode, ParleyError

BODY_SECONDS = 10.0
"""Within this time a body must have arrived whole."""


def has_body(headers: Headers) -> bool:
    """Whether a request brings a body (RFC 9112, section 6)."""
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


DRAINED_SECONDS = 2.0
DRAINED_BYTES = 8 * 1024 * 1024
"""How much of a refused body is still read: a client that is cut off while it sends never sees why."""


async def take_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """A whole JSON body. What is refused was read to its end or to a bound; its connection must then be closed.

    Args:
        scope: the request.
        receive: its ASGI `receive`.
        limit: most bytes.

    Raises:
        ParleyError: `UNSUPPORTED_MEDIA_TYPE`, `BODY_TOO_LARGE`, `DEADLINE_EXCEEDED`, `CLIENT_CLOSED_REQUEST`.
    """
    headers = Headers(scope=scope)
    try:
        return await _taken(headers, receive, limit)
    except ParleyError as error:
        if error.code in (ErrorCode.UNSUPPORTED_MEDIA_TYPE, ErrorCode.BODY_TOO_LARGE) and "expect" not in headers:
            await _drain(receive)
        raise


async def _taken(headers: Headers, receive: Receive, limit: int) -> bytes:
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise ParleyError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, "Send the body as it is: compressed ones are not taken.")
    if not _is_json(headers):
        raise from_status(415)
    if _int_or_zero(headers.get("content-length", "")) > limit:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _read(receive, limit)
    except TimeoutError:
        message = f"The request body did not arrive within {BODY_SECONDS:g} s."
        raise ParleyError(ErrorCode.DEADLINE_EXCEEDED, message) from None


def _is_json(headers: Headers) -> bool:
    """JSON, its characters in UTF-8."""
    kind, _, parameters = headers.get("content-type", "").lower().partition(";")
    charset = parameters.partition("charset=")[2].split(";")[0].strip(' "')
    return kind.strip() == "application/json" and charset in ("", "utf-8", "utf8", "us-ascii")


async def _drain(receive: Receive) -> None:
    size = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAINED_SECONDS):
            while size < DRAINED_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


async def _read(receive: Receive, limit: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ParleyError(ErrorCode.CLIENT_CLOSED_REQUEST, "The client left.")
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(limit: int) -> ParleyError:
    return ParleyError(ErrorCode.BODY_TOO_LARGE, f"The body is longer than {limit} bytes.")


def _int_or_zero(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def parse(body: bytes) -> Any:
    """A body as JSON, strictly: UTF-8, no NaN, no lone surrogates, no numbers beyond reason, no endless nesting.

    Raises:
        ParleyError: `INVALID_JSON`.
    """
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, ValueError) as error:
        raise ParleyError(ErrorCode.INVALID_JSON, f"The body is not valid JSON: {_cause(error)}.") from None


def _cause(error: Exception) -> str:
    """The decoder's words where they hold no user text."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error).removeprefix("JSON is malformed: ") if isinstance(error, msgspec.DecodeError) else "bad text"


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read already, then goes on with the connection."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return pending.pop() if pending else await receive()

    return again
