"""Who can reach the service: told by the socket that the worker listens on, whatever option or variable chose it."""

import ipaddress
import os
import socket
from collections.abc import Sequence

UNKNOWN = "an unknown address"


def listening_address(arguments: Sequence[str]) -> str:
    """The address that a worker listens on; `UNKNOWN` in a process that is none.

    Args:
        arguments: the worker's command line. BentoML's supervisor hands the socket over as `--fd N`.
    """
    if "--fd" not in arguments[:-1]:
        return UNKNOWN
    with socket.socket(fileno=os.dup(int(arguments[arguments.index("--fd") + 1]))) as listener:
        name = listener.getsockname()
    return name[0] if isinstance(name, tuple) else "localhost"


def is_private(address: str) -> bool:
    """Whether only programs of this machine can connect: a loopback address, or a socket file."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
