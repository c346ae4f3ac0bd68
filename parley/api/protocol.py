"""uvicorn's HTTP protocol as the service wants it.

What uvicorn answers by itself, before there is a request for us (bytes that are no HTTP, methods it knows not), has the
shape of our errors: its own words are plain text, and a client's library reads ours. And what is sent once a token gets
a short way out.
"""

import json

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from parley.api.errors import HEADER
from parley.contract.errors import ErrorCode, ParleyError

PIECES = "parley.pieces"
"""In the scope: the `send` for a body's pieces before its last one, past the layers that look at starts and ends only.

There are ten of them, three of ours, at half a microsecond each for every token.
"""


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol with errors in the shape that all others have, and with `PIECES`."""

    def on_headers_complete(self) -> None:
        """A request has arrived, but for its body."""
        super().on_headers_complete()
        if self.cycle is not None:
            self.cycle.scope[PIECES] = self.cycle.send  # type: ignore[literal-required]  # ours

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


def use_protocol() -> None:
    """Makes every uvicorn server of this process speak so: BentoML starts one, and takes no protocol for it."""
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{Protocol.__name__}"
