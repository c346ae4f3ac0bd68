"""haproxy in front of replicas, with the configuration that we ship."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import ROOT, free_port, needs
from tests.image.podman import wait_until_ready

CONFIG = ROOT / "deploy" / "haproxy" / "haproxy.cfg"


@contextmanager
def haproxy(replicas: Sequence[str], config: Path = CONFIG) -> Iterator[str]:
    """The address that stands for all replicas, which are given as `host:port`."""
    needs("haproxy")
    listen = f"127.0.0.1:{free_port()}"
    places = {f"PARLEY_REPLICA_{number}": place for number, place in enumerate(replicas, 1)}
    environment = {**os.environ, **places, "PARLEY_LISTEN": listen}
    process = subprocess.Popen(["haproxy", "-db", "-f", config], env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_until_ready(f"http://{listen}/readyz")
        yield f"http://{listen}"
    finally:
        process.terminate()
        process.wait()
