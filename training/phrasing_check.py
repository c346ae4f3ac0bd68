"""Checks on the phrasings: every template parses, and how many texts they can give."""

from pathlib import Path

from training.corpus.grammar import count
from training.texts import template_files, texts


def check_phrasings(folder: Path) -> str:
    """Say how many templates there are. Raises ValueError where brackets do not match."""
    templates = [text for path in template_files(folder) for text in texts(path)]
    return f"{len(templates):,} templates, {sum(map(count, templates)):,} texts before slots are filled"
