"""Texts of the pipeline's TOML files: phrasings and held-out wordings."""

import tomllib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

_WORD_LISTS = {"words", "people", "popular", "thesaurus"}


def template_files(phrasings: Path) -> list[Path]:
    """The files of phrasings that hold templates; the others hold words."""
    return [path for path in sorted(phrasings.glob("*.toml")) if path.stem not in _WORD_LISTS]


def texts(path: Path, skipped: Collection[str] = ()) -> Iterator[str]:
    """Every text of a file, but what stands under the keys to skip."""
    yield from _texts(tomllib.loads(path.read_text()), skipped)


def _texts(node: Any, skipped: Collection[str]) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, list):
        for child in node:
            yield from _texts(child, skipped)
    elif isinstance(node, dict):
        for key, child in node.items():
            if key not in skipped:
                yield from _texts(child, skipped)
