"""Readers of streamed answers through the typed client, and how each answer ended for its reader."""

import json
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from parley.client import Client
from parley.contract.chat import Message
from parley.contract.errors import ParleyError
from tests.conftest import Served, command_line, descendants
from tests.scrape import until


@dataclass(frozen=True)
class End:
    """The end of one answer: without a code it was whole."""

    text: str
    code: str | None
    at: float
    """When it was, in seconds of the monotonic clock."""


def read(url: str, text: str, model: str = "echo") -> End:
    """Reads one answer to its end."""
    said: list[str] = []
    code: str | None = None
    try:
        with Client(url, model=model, timeout=60) as client, client.stream([Message("user", text)]) as pieces:
            for piece in pieces:
                said.append(piece)
    except ParleyError as error:
        code = str(error.code)
    return End("".join(said), code, time.monotonic())


@contextmanager
def readers(served: Served, count: int, text: str) -> Iterator[list[Future[End]]]:
    """So many answers, all of them under way."""
    with ThreadPoolExecutor(count) as pool:
        ends = [pool.submit(read, served.url, text) for _ in range(count)]
        until(lambda: running(served) == count)
        yield ends


def unread(served: Served, path: str, body: Any, buffer: int | None = None) -> socket.socket:
    """A request whose answer nobody reads, on a connection that closes with a reset.

    Args:
        served: the service.
        path: of the route.
        body: of the request.
        buffer: bytes that the kernel takes in for the reader; with few, the service soon cannot go on sending.
    """
    host, port = urlsplit(served.url).netloc.split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.connect((host, int(port)))
    content = json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {len(content)}"]
    connection.sendall("\r\n".join([*head, "", ""]).encode() + content)
    return connection


def running(served: Served) -> int:
    """Answers under way, as `/readyz` tells them."""
    return int(requests.get(f"{served.url}/readyz", timeout=5).json()["running"])


def worker_pid(served: Served) -> int:
    """The process that serves the API."""
    return next(pid for pid in descendants(served.process.pid) if b"worker.service" in command_line(pid))


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
