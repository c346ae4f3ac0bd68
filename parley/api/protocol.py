"""uvicorn's HTTP protocol as the service wants it.

What uvicorn answers by itself, before there is a request for us (bytes that are no HTTP, methods it knows not), has the
shape of our errors: its own words are plain text, and a client's library reads ours. And what is sent once a token gets
a short way out.
"""

import json
from collections.abc import Callable

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from parley.api.errors import HEADER
from parley.contract.errors import ErrorCode, ParleyError

WRITE = "parley.write"
"""In the scope: a `Write` for the response's body, once it has begun and before its last piece."""

Write = Callable[[bytes], bool]
"""Writes a piece of a body at once, past ten layers that look at starts and ends only; says whether it could.

It can not when the reader is slow or gone: then the ASGI `send` waits, or finds that out.
"""


def refuse(body: bytes) -> bool:
    """A `Write` of servers that have none."""
    return False


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol with errors in the shape that all others have, and with `WRITE`."""

    def on_headers_complete(self) -> None:
        """A request has arrived, but for its body."""
        super().on_headers_complete()
        if self.cycle is not None:
            self.cycle.scope[WRITE] = writer(self.cycle)  # type: ignore[literal-required]  # ours

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
