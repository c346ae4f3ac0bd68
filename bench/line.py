"""Line: one user's connection to a server. It asks as `parley.client` does, and reads answers with the client's reader.

The client itself needs a thread a user, woken once a token: 65 to 82 microseconds each, of cores that the server needs.
Here all users share an event loop and a parser in C: 36, beside the 82.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlsplit

import httptools

from parley.contract.errors import ErrorCode, ParleyError
from parley.reply import Reply, ReplyText

_OK = 200


class Line:
    """A connection over plain HTTP/1.1, opened when it is needed, for one question at a time.

    Args:
        url: the server's address.
    """

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._host, self._port = address.hostname or "", address.port or 80
        self._hearing: _Hearing | None = None

    async def ask(self, request: dict[str, Any], heard: Callable[[str], None]) -> Reply:
        """One streamed chat completion.

        Args:
            request: its body.
            heard: called with every piece of text as it comes.

        Raises:
            ParleyError: for a refusal, an error frame, or a stream that ends before `[DONE]`.
            OSError: when there is no connection.
        """
        body = json.dumps(request).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self._host}:{self._port}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        if self._hearing is not None and not self._hearing.transport.is_closing():
            try:
                return await self._hearing.answer_to(head.encode() + body, heard)
            except ParleyError:
                if self._hearing.has_begun:
                    raise  # otherwise the server had closed what was left open, as it may at any time
        _, self._hearing = await asyncio.get_running_loop().create_connection(_Hearing, self._host, self._port)
        return await self._hearing.answer_to(head.encode() + body, heard)


class _Hearing(asyncio.Protocol):
    """What comes back on a connection."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)

    async def answer_to(self, request: bytes, heard: Callable[[str], None]) -> Reply:
        """Sends a request and waits for its answer."""
        self.has_begun = False
        self._heard = heard
        self._text = ReplyText()
        self._refusal = b""
        self._answered: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._answered

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are no subclasses of asyncio's

    def data_received(self, data: bytes) -> None:
        self.has_begun = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"what answers speaks no HTTP: {error}")

    def on_body(self, body: bytes) -> None:
        """Some of a body, without the marks between its chunks."""
        if self._parser.get_status_code() != _OK:
            self._refusal += body
            return
        try:
            for piece in self._text.feed(body):
                self._heard(piece)
        except ParleyError as error:
            self._end(error)

    def on_message_complete(self) -> None:
        """The end of a response."""
        status = self._parser.get_status_code()
        if status != _OK:
            self._fail(f"HTTP {status}: {self._refusal[:200].decode(errors='replace')}")
        else:
            self._finish("the stream ended without [DONE]")
        if not self._parser.should_keep_alive():
            self.transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        self._finish("the connection broke before the answer was complete")  # which is how some bodies end

    def _finish(self, otherwise: str) -> None:
        if not self._text.complete:
            self._fail(otherwise)
        elif not self._answered.done():
            self._answered.set_result(self._text.reply)

    def _fail(self, message: str) -> None:
        self._end(ParleyError(ErrorCode.UPSTREAM_ERROR, message))

    def _end(self, error: ParleyError) -> None:
        if not self._answered.done():
            self._answered.set_exception(error)
