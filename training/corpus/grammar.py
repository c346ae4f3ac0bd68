"""A small phrase grammar: `[who is|who's] {n} [really|]` holds choices in brackets and slots in braces.

A choice may be empty and may hold further choices. A slot is filled from a mapping of strings.
"""

import re
from collections.abc import Mapping
from functools import cache
from random import Random
from typing import Any

Phrase = tuple[Any, ...]  # of str (a literal) and of tuples of phrases (a choice)

_TOKEN = re.compile(r"[\[\]|]|[^\[\]|]+")
_SLOT = re.compile(r"\{(\w+)\}")


@cache
def parse(template: str) -> Phrase:
    """Parse a template into literals (str) and choices (tuples of phrases).

    Raises ValueError when brackets do not match.
    """
    tokens = _TOKEN.findall(template)
    options, end = _options(tokens, 0, depth=0)
    if end != len(tokens) or len(options) != 1:
        raise ValueError(f"brackets do not match in {template!r}")
    return options[0]


def _options(tokens: list[str], at: int, depth: int) -> tuple[tuple[Phrase, ...], int]:
    """Read alternatives up to the closing bracket; give them and the index after it."""
    options: list[Phrase] = []
    parts: list[str | tuple[Phrase, ...]] = []
    while at < len(tokens) and tokens[at] != "]":
        if tokens[at] == "[":
            choice, at = _options(tokens, at + 1, depth + 1)
            parts.append(choice)
        elif tokens[at] == "|":
            options.append(tuple(parts))
            parts = []
            at += 1
        else:
            parts.append(tokens[at])
            at += 1
    if depth and at == len(tokens):
        raise ValueError("a bracket is not closed")
    return (*options, tuple(parts)), at + 1 if depth else at


def slots(template: str) -> frozenset[str]:
    """The names of the slots that a template needs."""
    return frozenset(_SLOT.findall(template))


def choose(template: str, rng: Random) -> str:
    """One of the template's texts, with its slots still open."""
    return _choose(parse(template), rng)


def fill(text: str, values: Mapping[str, str]) -> str:
    """The text with its slots filled and doubled blanks closed up. Raises KeyError when a slot has no value."""
    text = _SLOT.sub(lambda slot: values[slot[1]], text)
    return " ".join(text.split()).replace(" ?", "?").replace(" ,", ",")


def _choose(phrase: Phrase, rng: Random) -> str:
    return "".join(part if isinstance(part, str) else _choose(rng.choice(part), rng) for part in phrase)


def count(template: str) -> int:
    """How many distinct texts a template can give, before its slots are filled."""
    return _count(parse(template))


def _count(phrase: Phrase) -> int:
    total = 1
    for part in phrase:
        if not isinstance(part, str):
            total *= sum(_count(option) for option in part)
    return total
