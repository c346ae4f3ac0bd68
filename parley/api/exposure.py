"""Who can reach the service: told by the socket that the worker listens on, whatever option or variable chose it."""

import ipaddress
import os
import socket
import sys
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


def exposure_fault(address: str, open_to_all: bool, allowed: bool) -> str:
    """Why the service must not listen here, or an empty string; an exposure that was asked for is told on the way.

    Args:
        address: where it listens.
        open_to_all: whether it asks for no API key.
        allowed: whether the settings say that this is meant.
    """
    if not open_to_all or is_private(address):
        return ""
    if not allowed:
        return (
            f"listening on {address} without API keys would let everybody in: set PARLEY_KEYS_FILE, "
            "or PARLEY_ALLOW_ANONYMOUS=true if that is meant, or listen on 127.0.0.1"
        )
    print(
        f"parley: listening on {address} without API keys (PARLEY_ALLOW_ANONYMOUS=true): everybody is let in",
        file=sys.stderr,
        flush=True,
    )
    return ""


def is_private(address: str) -> bool:
    """Whether only programs of this machine can connect: a loopback address, or a socket file."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
