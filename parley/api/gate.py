"""Gate: right behind `Access`, around every route of the service, BentoML's own included.

It takes bodies in within limits of size and time and only as JSON, and sees to it that every error leaves in OpenAI's
shape, whoever raised it.
"""

import asyncio
import logging
from collections.abc import Callable, MutableMapping
from typing import Any

import msgspec
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from parley.api.errors import HEADER, ErrorResponse, from_status, validation_error
from parley.contract.errors import ErrorCode, ParleyError
from parley.engine.engine import Health, State
from parley.telemetry.record import current

BODY_SECONDS = 10.0
"""Within this time a body must have arrived whole."""

logger = logging.getLogger("parley.api")


class Gate:
    """ASGI middleware.

    Args:
        app: what lies behind.
        max_body_bytes: longest body.
        health: how the engine is; answers `/readyz`.
        native: for each native route the contract of its body, checked here because BentoML's own refusal would print
            the user's text into the log.
    """

    def __init__(
        self, app: ASGIApp, max_body_bytes: int, health: Callable[[], Health], native: dict[str, type[BaseModel]]
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._health = health
        self._native = native

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        progress = current()
        answer = _Answer(send, progress.head.request_id)
        try:
            await self._pass_on(scope, receive, answer)
        except ParleyError as error:
            await answer.replace(scope, receive, ErrorResponse(error))
        except Exception:  # nothing of the frameworks below may reach a client in another shape
            logger.error("the request failed", exc_info=True)
            progress.code = ErrorCode.INTERNAL_ERROR
            await answer.replace(scope, receive, ErrorResponse(from_status(500)))

    async def _pass_on(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        if scope["path"] == "/readyz" and scope["method"] in ("GET", "HEAD"):
            return await readyz(self._health())(scope, receive, answer.send)
        if scope["method"] in ("POST", "PUT", "PATCH"):
            body = await self._take_body(scope, receive)
            self._check(scope["path"], body)
            receive = replay(body, receive)
        await self._app(scope, receive, answer.send)

    async def _take_body(self, scope: Scope, receive: Receive) -> bytes:
        headers = Headers(scope=scope)
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise from_status(415)
        if int_or_zero(headers.get("content-length", "")) > self._max_body_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await self._read(receive)
        except TimeoutError:
            message = f"The request body did not arrive within {BODY_SECONDS:g} s."
            raise ParleyError(ErrorCode.DEADLINE_EXCEEDED, message) from None

    async def _read(self, receive: Receive) -> bytes:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ParleyError(ErrorCode.CLIENT_CLOSED_REQUEST, "The client left.")
            body += message.get("body", b"")
            if len(body) > self._max_body_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> ParleyError:
        return ParleyError(ErrorCode.BODY_TOO_LARGE, f"The body is longer than {self._max_body_bytes} bytes.")

    def _check(self, path: str, body: bytes) -> None:
        """Refuses what is not JSON, and what a native route's contract does not allow."""
        content = parse(body)
        if contract := self._native.get(path):
            try:
                contract.model_validate(content)
            except ValidationError as error:
                raise validation_error(error) from None


class _Answer:
    """The response on its way out: gets the request's id, and is exchanged when it is an error of another shape."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self._started = False
        self._foreign = False

    async def send(self, message: Message) -> None:
        """Passes one ASGI message on, or drops it when it belongs to a response that was exchanged."""
        if self._foreign:
            return
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            if message["status"] >= 400 and HEADER not in headers:
                self._foreign = True
                replacement = ErrorResponse(from_status(message["status"]))
                if allow := headers.get("allow"):
                    replacement.headers["allow"] = allow
                return await replacement({"type": "http"}, _nothing, self._outward)
        await self._outward(message)

    async def replace(self, scope: Scope, receive: Receive, response: ErrorResponse) -> None:
        """Answers with an error, if no answer has begun."""
        if not self._started:
            await response(scope, receive, self._outward)

    async def _outward(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            MutableHeaders(scope=message)["x-request-id"] = self.request_id
        await self._send(message)


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


def readyz(health: Health) -> JSONResponse:
    """`GET /readyz`: 200 when answers can be had, 503 with the reason when not."""
    ready = health.state is State.READY
    body = {"status": health.state.value, "detail": health.detail, "running": health.running}
    return JSONResponse(body, 200) if ready else JSONResponse(body, 503, {HEADER: health.state.value})


def int_or_zero(text: str) -> int:
    """A header's number; 0 when it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


