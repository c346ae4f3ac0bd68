"""The socket that the worker listens on, whatever option or variable chose it."""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

READER_SECONDS = 30.0
"""After this time without taking anything, a reader whose buffers are full is cut off."""


@contextmanager
def listener(arguments: Sequence[str]) -> Iterator[socket.socket | None]:
    """The listening socket; None in a process that has none.

    Args:
        arguments: the worker's command line. BentoML's supervisor hands the socket over as `--fd N`.
    """
    if "--fd" in arguments[:-1]:
        with socket.socket(fileno=os.dup(int(arguments[arguments.index("--fd") + 1]))) as listening:
            yield listening
    else:
        yield None


def cut_stalled_readers(listening: socket.socket | None) -> None:
    """Lets the kernel end connections whose reader has stalled (RFC 5482), and with them the answers that they hold.

    Connections inherit it from the listening socket. The server would wait for such a reader for ever, and a timer of
    our own would have to be set with every token.
    """
    if listening and listening.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(READER_SECONDS * 1000))
