"""uvicorn's HTTP protocol as the service wants it.

What uvicorn answers by itself, before there is a request for us (bytes that are no HTTP, methods it knows not), has the
shape of our errors: its own words are plain text, and a client's library reads ours. A request's head has bounds, which
uvicorn does not set. A request that offers another protocol keeps its body. And what is sent once a token gets a short
way out.
"""

import asyncio
import json
import sys
from collections.abc import Callable, Iterable

from httptools import HttpParserUpgrade, HttpRequestParser
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from parley.api.errors import HEADER
from parley.contract.errors import ErrorCode, ParleyError

WRITE = "parley.write"
"""In the scope: a `Write` for the response's body, once it has begun and before its last piece."""

HEAD_BYTES = 65_536
"""Longest head of a request, or end of one in chunks."""
HEAD_SECONDS = 10.0
"""How long a connection may take to bring the head of a request, once it is open or has begun with it."""

OFFER = b"upgrade"
"""The header of an offer to go on in another protocol."""

Write = Callable[[bytes], bool]
"""Writes a piece of a body at once, past ten layers that look at starts and ends only; says whether it could.

It can not when the reader is slow or gone: then the ASGI `send` waits, or finds that out.
"""


def refuse(body: bytes) -> bool:
    """A `Write` of servers that have none."""
    return False


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol with errors in the shape that all others have, bounds for heads, and `WRITE`.

    An offer to go on in another protocol is passed over, as a server may (RFC 9110, section 7.8), but for WebSocket,
    which is refused further in. Java's client offers HTTP/2 with every request. The parser takes what follows such a
    head for the other protocol, so it is begun anew with the head as it would be without the offer.
    """

    _unparsed = 0
    """Bytes that came since the last piece of a request was complete."""
    _plain_head = b""
    """The head of a request that made such an offer, without it; empty for any other request."""
    _stopped_at: int | None = None
    """Where in the bytes that have just come the parser stopped, behind such a head."""
    _awaited: asyncio.TimerHandle | None = None
    """Closes the connection if no head comes."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A connection is open."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._head_is_here()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes have come."""
        if self.cycle is None or self.cycle.response_complete:
            self._await_head()
        self._unparsed += len(data)
        super().data_received(data)
        while self._stopped_at is not None:
            data = self._begun_anew() + data[self._stopped_at :]
            self._stopped_at = None
            super().data_received(data)
        if self._unparsed > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The head of the request is too long; {HEAD_BYTES} bytes are allowed.")

    def on_body(self, body: bytes) -> None:
        """A piece of a body has come."""
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is complete."""
        if self._plain_head:
            return
        self._unparsed = 0
        super().on_message_complete()

    def on_headers_complete(self) -> None:
        """A request has arrived, but for its body."""
        if self.parser.should_upgrade() and self._offers_in_vain():
            line = b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
            self._plain_head = plain_head(line, self.headers)
            return
        self._unparsed = 0
        self._head_is_here()
        super().on_headers_complete()
        if self.cycle is not None:
            self.cycle.scope[WRITE] = writer(self.cycle)  # type: ignore[literal-required]  # ours

    def _offers_in_vain(self) -> bool:
        """Whether the request has the parser stop for the sake of a protocol that nobody here speaks."""
        offers = any(name == OFFER for name, _ in self.headers)
        return offers and not self._should_upgrade()

    def _unsupported_upgrade_warning(self) -> None:
        """uvicorn calls it where the parser has stopped, and would let the body go."""
        stop = sys.exception()
        if self._plain_head and isinstance(stop, HttpParserUpgrade):
            self._stopped_at = stop.args[0]

    def _begun_anew(self) -> bytes:
        """What a new parser is to be fed first."""
        self.parser = HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        head, self._plain_head = self._plain_head, b""
        return head

    def _await_head(self) -> None:
        if self._awaited is None:
            self._awaited = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _head_is_here(self) -> None:
        if self._awaited is not None:
            self._awaited.cancel()
            self._awaited = None

    def send_400_response(self, msg: str) -> None:
        """Answers what could not be read as a request, and closes the connection."""
        error = ParleyError(ErrorCode.INVALID_VALUE, msg)
        body = json.dumps(error.body()).encode()
        head = (
            f"HTTP/1.1 {error.status} Bad Request\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n{HEADER}: {error.code}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def plain_head(line: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The head of a request without its offer to go on in another protocol."""
    fields = [b"%b: %b" % field for field in headers if field[0] != OFFER]
    return b"\r\n".join([line, *fields, b"", b""])


def writer(cycle: RequestResponseCycle) -> Write:
    """What writes chunks (RFC 9112, section 7.1) of the response of one request."""

    def write(body: bytes) -> bool:
        if cycle.flow.write_paused or cycle.disconnected or not cycle.chunked_encoding:
            return False
        cycle.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return True

    return write


def use_protocol() -> None:
    """Makes every uvicorn server of this process speak so: BentoML starts one, and takes no protocol for it."""
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{Protocol.__name__}"
