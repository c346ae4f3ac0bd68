"""Checks on the phrasings: every template parses, and how many texts they can give."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.corpus.grammar import count

_NOT_TEMPLATES = {"words", "people", "popular", "thesaurus"}


def check_phrasings(folder: Path) -> str:
    """Say how many templates there are. Raises ValueError where brackets do not match."""
    paths = [path for path in sorted(folder.glob("*.toml")) if path.stem not in _NOT_TEMPLATES]
    templates = [text for path in paths for text in _texts(tomllib.loads(path.read_text()))]
    return f"{len(templates):,} templates, {sum(map(count, templates)):,} texts before slots are filled"


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, (dict, list)):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _texts(child)
