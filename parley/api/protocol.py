"""What uvicorn answers by itself, before there is a request for us: bytes that are no HTTP, and methods it knows not.

Its own words are plain text; a client's library reads ours.
"""

import json

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from parley.api.errors import HEADER
from parley.contract.errors import ErrorCode, ParleyError


class JsonErrorsProtocol(HttpToolsProtocol):
    """uvicorn's protocol with errors in the shape that all others have."""

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


def use_json_errors() -> None:
    """Makes every uvicorn server of this process speak so: BentoML starts one, and takes no protocol for it."""
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{JsonErrorsProtocol.__name__}"
