"""The entry of a Bento that brings a model of its own: the folder beside this file, unless a setting names another."""

import os
from pathlib import Path

_FOLDERS = [path for path in (Path(__file__).parent / "models").iterdir() if path.is_dir()]
os.environ.setdefault("PARLEY_MODEL", str(_FOLDERS[0]))

from service import Parley  # noqa: E402 - the service reads its settings when it is imported

__all__ = ["Parley"]
