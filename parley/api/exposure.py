"""Who can reach the service: told by the socket that the worker listens on."""

import ipaddress
import socket

UNKNOWN = "an unknown address"


def listening_address(listening: socket.socket | None) -> str:
    """The address of a listening socket; `UNKNOWN` without one."""
    if listening is None:
        return UNKNOWN
    name = listening.getsockname()
    return name[0] if isinstance(name, tuple) else "localhost"


def exposure_fault(address: str, open_to_all: bool, allowed: bool) -> str:
    """Why the service must not listen here, or an empty string.

    Args:
        address: where it listens.
        open_to_all: whether it asks for no API key.
        allowed: whether the settings say that this is meant.
    """
    if allowed or not is_exposed(address, open_to_all):
        return ""
    return (
        f"listening on {address} without API keys would let everybody in: set PARLEY_KEYS_FILE, "
        "or PARLEY_ALLOW_ANONYMOUS=true if that is meant, or listen on 127.0.0.1"
    )


def is_exposed(address: str, open_to_all: bool) -> bool:
    """Whether other machines may reach a service that asks for no API key."""
    return open_to_all and not is_private(address)


def is_private(address: str) -> bool:
    """Whether only programs of this machine can connect: a loopback address, or a socket file."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
