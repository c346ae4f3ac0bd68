"""Inventions: gibberish, first names and heroes that do not exist."""

import string
from random import Random

from training.corpus.book import Book


def syllables(book: Book, rng: Random, count: int) -> str:
    """A pronounceable word of so many syllables, in lower case."""
    return "".join(rng.choice(book.unknown[part]) for _ in range(count) for part in ("onsets", "vowels", "codas"))


def person(book: Book, rng: Random) -> str:
    """A user's first name: a common one, or made up so that the model learns to copy it."""
    if rng.random() < 0.35:
        return rng.choice(book.people)
    return syllables(book, rng, rng.choice((1, 2, 2, 3))).capitalize()


def hero(book: Book, rng: Random) -> str:
    """The name of a character that nobody knows."""
    draw = rng.random()
    if draw < 0.45:
        return f"{rng.choice(book.unknown['first'])} {rng.choice(book.unknown['second'])}"
    name = syllables(book, rng, rng.choice((2, 2, 3))).capitalize()
    if draw < 0.65:
        return name + rng.choice(book.unknown["titles"])
    if draw < 0.75:
        return f"{rng.choice(book.unknown['first'])} {name}"
    if draw < 0.85:
        return f"{rng.choice(book.people)} {name}"
    return name


def gibberish(rng: Random) -> str:
    """Keys struck at random."""
    draw = rng.random()
    if draw < 0.4:
        return "".join(rng.choices("asdfghjkl" if draw < 0.2 else string.ascii_lowercase, k=rng.randint(3, 12)))
    if draw < 0.6:
        return "".join(rng.choices("bcdfghjklmnpqrstvwxz", k=rng.randint(4, 9)))
    if draw < 0.8:
        return rng.choice(("ha", "la", "jk", "as", "df", "zx", "qw", "ks", "fj", "uh")) * rng.randint(3, 6)
    return "".join(rng.choices(string.ascii_lowercase + string.digits + "#;[]=-%&", k=rng.randint(4, 14)))
