"""A container registry on loopback."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import free_port, needs
from tests.image.podman import wait_until_ready

CONFIG = """\
version: 0.1
storage: {{filesystem: {{rootdirectory: "{folder}/registry"}}}}
http: {{addr: "{address}"}}
"""


@contextmanager
def loopback_registry(folder: Path) -> Iterator[str]:
    """Its address, while it runs."""
    needs("docker-registry")
    address = f"127.0.0.1:{free_port()}"
    config = folder / "registry.yaml"
    config.write_text(CONFIG.format(folder=folder, address=address))
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
    try:
        wait_until_ready(f"http://{address}/v2/")
        yield address
    finally:
        process.kill()
        process.wait()
