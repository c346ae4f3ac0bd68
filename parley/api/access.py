"""Access: the outermost layer of ours. It gives each request its id, and its record, whatever becomes of it."""

import re
import time
import uuid
from collections.abc import Callable, Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from parley.api.errors import HEADER
from parley.telemetry.observer import Observer
from parley.telemetry.record import Head, Progress

UNKNOWN = "unknown"
"""Stands for every path that is no route, and for every method that is none."""

UNDOCUMENTED = ("/docs", "/docs.json", "/schema.json", "/static_content/{file}")
"""Routes that no OpenAPI document lists."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class Access:
    """ASGI middleware.

    Args:
        app: what lies behind.
        observer: gives the one who is told of each request.
        paths: gives the templates of all routes of the service, as its OpenAPI document has them.
    """

    def __init__(self, app: ASGIApp, observer: Callable[[], Observer], paths: Callable[[], Iterable[str]]) -> None:
        self._app = app
        self._observer = observer
        self._routes = Routes([*paths(), *UNDOCUMENTED])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        observer = self._observer()
        progress = observer.began(self._head(scope))

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start":
                see_status(progress, message)
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                progress.whole = True

        try:
            await self._app(scope, receive, watch)
        finally:
            observer.ended(progress)

    def _head(self, scope: Scope) -> Head:
        headers = Headers(scope=scope)
        given, traceparent = headers.get("x-request-id", ""), headers.get("traceparent", "")
        return Head(
            request_id=given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex,
            method=scope["method"] if scope["method"] in _METHODS else UNKNOWN,
            route=self._routes.name(scope["path"]),
            arrived=time.monotonic(),
            traceparent=traceparent if _TRACEPARENT.fullmatch(traceparent) else None,
        )


def see_status(progress: Progress, start: Message) -> None:
    """Takes status and error code from the start of a response."""
    progress.status = start["status"]
    progress.code = Headers(raw=start["headers"]).get(HEADER, progress.code)


class Routes:
    """Names of routes for metrics and logs: never more of them than there are routes.

    Args:
        templates: such as `/v1/models` and `/v1/models/{model}`.
    """

    def __init__(self, templates: Iterable[str]) -> None:
        known = sorted(templates, key=len, reverse=True)
        self._plain = frozenset(template for template in known if "{" not in template)
        self._patterns = {template: _pattern(template) for template in known if "{" in template}

    def name(self, path: str) -> str:
        """The template that a path is for, the longest one if several are; `unknown` where there is none."""
        if path in self._plain:
            return path
        return next((name for name, pattern in self._patterns.items() if pattern.fullmatch(path)), UNKNOWN)


def _pattern(template: str) -> re.Pattern[str]:
    """A regular expression for a template; a parameter may hold slashes, as the names of models do."""
    literals = re.split(r"\{[^}]*\}", template)
    return re.compile(".+".join(map(re.escape, literals)))
