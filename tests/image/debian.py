"""Roots made of Debian's packages, for what this machine lacks: made once, kept as archives."""

import os
import subprocess
from pathlib import Path

from tests.conftest import needs

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "parley-image-test"
UNREAD = ("doc", "man", "locale")


def root(name: str, suite: str, packages: str) -> Path:
    """The archive of a minimal root with these packages, divided by commas."""
    archive = CACHE / f"{name}.tar"
    if not archive.is_file():
        needs("mmdebstrap")
        CACHE.mkdir(parents=True, exist_ok=True)
        slim = [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in UNREAD]
        fresh = archive.with_suffix(".new.tar")
        subprocess.run(["mmdebstrap", "--variant=minbase", f"--include={packages}", *slim, suite, fresh], check=True)
        fresh.rename(archive)
    return archive
