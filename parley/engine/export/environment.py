"""The environment that models are exported in. Its pins contradict those of the service, so it is one of its own."""

import hashlib
import os
import sys
from pathlib import Path

from parley.engine.export.steps import Steps

LOCK = Path(__file__).with_name("requirements.lock")
"""Every package with its hashes, but for torch: which build of it is the one for a CPU depends on the index."""

TORCH = "torch==2.13.0"


class Environment:
    """A virtual environment in the cache, made once for each lock and Python; an unfinished one is gone on with.

    Args:
        cache: the folder of everything that can be made again.
    """

    def __init__(self, cache: Path) -> None:
        pins = LOCK.read_bytes() + TORCH.encode() + sys.version.encode()
        self._folder = cache / f"export-environment-{hashlib.sha256(pins).hexdigest()[:12]}"

    @property
    def ready(self) -> bool:
        """Whether it is complete."""
        return self._complete.is_file()

    def program(self, name: str) -> str:
        """The path of one of its programs."""
        return str(self._folder / "bin" / name)

    def make(self, steps: Steps) -> None:
        """Makes it, unless it is complete.

        Raises:
            ModelError: one line with the cause; what is there by then is used by the next try.
        """
        if self.ready:
            return
        pip = [self.program("python"), "-m", "pip", "install", "--no-deps", "--disable-pip-version-check"]
        # uv knows where CPU builds of torch are published; pip takes what the configured index has.
        uv = [self.program("uv"), "pip", "install", "--python", self.program("python"), "--no-deps", "--system-certs"]
        clean = variables()
        steps.run("making an environment for it, once", clean, [sys.executable, "-m", "venv", str(self._folder)])
        steps.run("installing the exporter", clean, [*pip, "--require-hashes", "-r", str(LOCK)])
        steps.run("installing torch", clean, [*uv, "--torch-backend=cpu", TORCH], [*pip, TORCH])
        steps.run("trying torch", clean, [self.program("python"), "-c", "import torch"])
        self._complete.touch()

    @property
    def _complete(self) -> Path:
        return self._folder / "complete"


def variables(**more: str) -> dict[str, str]:
    """This process's environment variables without those that lead Python to its own packages."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")} | more
