"""Gate: right behind `Access`, around every route of the service, BentoML's own included.

It asks for a key, takes bodies in within their limits, gives answers that were made before, and sees to it that every
error leaves in OpenAI's shape, whoever raised it.
"""

import logging
import time
from collections.abc import Callable, MutableMapping
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from parley.api.body import has_body, parse, replay, take_body
from parley.api.errors import HEADER, ErrorResponse, from_status, validation_error
from parley.api.idempotency import Asked, Recordings
from parley.api.keys import Key, Keyring
from parley.contract.errors import ErrorCode, ParleyError
from parley.contract.health import Readiness
from parley.contract.limits import Limits
from parley.engine.engine import Health, State
from parley.telemetry.record import current

ANSWERING = ("/chat", "/v1/chat/completions")
"""Routes that need a place in the engine's batch."""

COUNTED = (*ANSWERING, "/tokenize")
"""Routes that a key may ask so often a minute: pages and scrapers ask the others every few seconds, for nothing."""

REDIRECTS = (301, 302, 303, 307, 308)

logger = logging.getLogger("parley.api")


class Gate:
    """ASGI middleware.

    Args:
        app: what lies behind.
        keyring: who may come in.
        limits: how large a request may be.
        recordings: answers to requests that may be sent again.
        health: how the engine is; answers `/readyz`.
        native: for each native route the contract of its body, checked here because BentoML's own refusal would print
            the user's text into the log.
        refuse_if_full: raises when no answer can be begun; asked before the frameworks read a request, as a refusal
            is to cost little just when there are many.
    """

    def __init__(
        self,
        app: ASGIApp,
        keyring: Keyring,
        limits: Limits,
        recordings: Recordings,
        health: Callable[[], Health],
        native: dict[str, type[BaseModel]],
        refuse_if_full: Callable[[], None],
    ) -> None:
        self._app = app
        self._keyring = keyring
        self._limits = limits
        self._recordings = recordings
        self._health = health
        self._native = native
        self._refuse_if_full = refuse_if_full

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "websocket":
            # No route speaks WebSocket: a plain 404 before the upgrade, and no way around the keys.
            await ErrorResponse(from_status(404))(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
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
        key = self._admit(scope)
        path, method = scope["path"], scope["method"]
        if path == "/readyz" and method in ("GET", "HEAD"):
            await readyz(self._health())(scope, receive, answer.send)
        elif method in ("POST", "PUT", "PATCH") and has_body(Headers(scope=scope)):
            await self._with_body(scope, receive, answer, key)
        elif method == "POST" and path in self._native:
            raise ParleyError(ErrorCode.MISSING_FIELD, "The request needs a body.")
        else:
            await self._app(scope, receive, answer.send)

    async def _with_body(self, scope: Scope, receive: Receive, answer: "_Answer", key: Key | None) -> None:
        try:
            body = await take_body(scope, receive, self._limits.body_bytes)
        except ParleyError:
            answer.closes = True
            raise
        self._check(scope["path"], body)
        if asked := Asked.by(key.name if key else "", scope, body):
            await self._recordings.answer(asked, self._app, scope, receive, answer.send, body)
        else:
            if scope["path"] in ANSWERING:
                self._refuse_if_full()
            await self._app(scope, replay(body, receive), answer.send)

    def _admit(self, scope: Scope) -> Key | None:
        """Whose request it is; routes find the key in the request's state."""
        key = self._keyring.admit(scope)
        current().key = key.name if key else None
        scope.setdefault("state", {})["key"] = key
        if key and scope["method"] == "POST" and scope["path"] in COUNTED:
            key.request(time.monotonic())
        return key

    def _check(self, path: str, body: bytes) -> None:
        """Refuses what is not JSON, what is too large, and what a native route's contract does not allow."""
        content = parse(body)
        self._limits.check(content)
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
        self.closes = False
        """Whether the connection is closed after it: the rest of the request is not worth waiting for."""
        self._started = False
        self._foreign = False

    async def send(self, message: Message) -> None:
        """Passes one ASGI message on, or drops it when it belongs to a response that was exchanged."""
        if self._foreign:
            return
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            # Redirects are Starlette's for a slash too many or too few, to a host that the client may have made up.
            status = 404 if message["status"] in REDIRECTS else message["status"]
            if status >= 400 and HEADER not in headers:
                self._foreign = True
                replacement = ErrorResponse(from_status(status))
                if allow := headers.get("allow"):
                    replacement.headers["allow"] = allow
                await replacement({"type": "http"}, _nothing, self._outward)
                return
        await self._outward(message)

    async def replace(self, scope: Scope, receive: Receive, response: ErrorResponse) -> None:
        """Answers with an error, if no answer has begun."""
        if not self._started:
            await response(scope, receive, self._outward)

    async def _outward(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.request_id
            if self.closes:
                headers["connection"] = "close"
        await self._send(message)


def readyz(health: Health) -> JSONResponse:
    """`GET /readyz`: 200 when answers can be had, 503 with the reason when not."""
    ready = health.state is State.READY
    headers = {} if ready else {HEADER: health.state.value}
    if health.state is State.DRAINING:  # the next probe and the next question are for whoever comes after it
        headers["connection"] = "close"
    body = Readiness(status=health.state.value, detail=health.detail, running=health.running).model_dump()
    return JSONResponse(body, 200 if ready else 503, headers)


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
