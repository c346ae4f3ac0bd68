"""Serves a Bento from the store and asks it once, under `unshare -rn`: loopback is all the network there is.

    unshare -rn python tests/offline.py PYTHON TAG ENDPOINT... < request.json

Prints what the service answered to a POST of stdin to each of the endpoints, one JSON value a line.
"""

import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request

PORT = 3000
IFF_UP = 1
SIOCSIFFLAGS = 0x8914
READY_SECONDS = 120


def raise_loopback() -> None:
    """`ip link set lo up`, without needing `ip`; the request is netdevice(7)'s."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def wait_until_ready(server: "subprocess.Popen[bytes]") -> None:
    """Returns when the service can answer; exits when it has ended or the time is up."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz", timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    sys.exit(f"not ready; exit status {server.poll()}")


def post(path: str, body: bytes) -> object:
    """The decoded answer."""
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def main() -> None:
    """Entry point."""
    python, tag, *endpoints = sys.argv[1:]
    raise_loopback()
    body = sys.stdin.buffer.read()
    command = [python, "-m", "bentoml", "serve", tag, "--host", "127.0.0.1", "--port", str(PORT)]
    server = subprocess.Popen(command, stdout=sys.stderr, start_new_session=True)
    try:
        wait_until_ready(server)
        for endpoint in endpoints:
            print(json.dumps(post(endpoint, body)))
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


if __name__ == "__main__":
    main()
