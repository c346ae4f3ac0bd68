"""The entry of a Bento that brings a model of its own: the one beside this file, unless a setting names another."""

import os
from pathlib import Path

_MODELS = Path(__file__).parent / "models"

if "PARLEY_MODEL" not in os.environ:
    _folder = min(_MODELS.rglob("config.json"), key=lambda path: len(path.parts)).parent  # an export has one, deeper
    os.environ["PARLEY_MODEL"] = str(_folder)
    os.environ.setdefault("PARLEY_SERVED_MODEL_NAME", _folder.relative_to(_MODELS).as_posix())

from service import Parley  # noqa: E402 - the service reads its settings when it is imported

__all__ = ["Parley"]
