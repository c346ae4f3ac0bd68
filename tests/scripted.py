"""A server that says exactly what a test wants, in exactly the pieces it wants, over a real socket."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Say = Callable[[bytes], None]
Script = Callable[[bytes, Say], None]
"""Gets the request as it came and says the response; the connection is closed when it returns."""


class ScriptedServer:
    """Runs one script for every connection. `requests` holds what came, `left` is set when a client has gone."""

    def __init__(self, script: Script, port: int) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[bytes] = []
        self.left = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Takes no more connections; a thread in `accept` alone would take one more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                request = read_request(connection)
                self.requests.append(request)
                self._script(request, connection.sendall)
            except OSError:
                self.left.set()


def read_request(connection: socket.socket) -> bytes:
    """One whole request, head and body; raises `OSError` where its end never comes."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += received(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    while len(body) < length:
        body += received(connection)
    return head + b"\r\n\r\n" + body


def received(connection: socket.socket) -> bytes:
    """Some more bytes."""
    if data := connection.recv(65536):
        return data
    raise ConnectionError("the client left in the middle of its request")


@contextmanager
def scripted(script: Script, port: int = 0) -> Iterator[ScriptedServer]:
    """A running server."""
    server = ScriptedServer(script, port)
    try:
        yield server
    finally:
        server.close()


def answers(status: str, body: bytes, content_type: str = "application/json", more: str = "") -> Script:
    """A script for one plain response."""

    def script(_: bytes, say: Say) -> None:
        fields = f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{more}"
        say(f"HTTP/1.1 {status}\r\n{fields}\r\n".encode() + body)

    return script


def streams(*blocks: bytes) -> Script:
    """A script for an event stream in these network chunks, each a chunk of the chunked body as well."""

    def script(_: bytes, say: Say) -> None:
        say(STREAM_HEAD)
        for block in blocks:
            say(chunked(block))
        say(b"0\r\n\r\n")

    return script


def chat_service(answer: Script) -> Script:
    """A script for a service that lists one model, and answers a chat with another script."""

    def script(request: bytes, say: Say) -> None:
        listing = answers("200 OK", b'{"data": [{"id": "m"}]}')
        (answer if request.startswith(b"POST ") else listing)(request, say)

    return script


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunked(block: bytes) -> bytes:
    """One chunk of a chunked body (RFC 9112, section 7.1)."""
    return f"{len(block):x}\r\n".encode() + block + b"\r\n"
