"""Inventions: gibberish, first names and heroes that do not exist."""

import string
from functools import cache
from itertools import combinations
from random import Random

from training.corpus.book import Book


def syllables(book: Book, rng: Random, count: int) -> str:
    """A pronounceable word of so many syllables, in lower case."""
    return "".join(rng.choice(book.unknown[part]) for _ in range(count) for part in ("onsets", "vowels", "codas"))


def person(book: Book, rng: Random) -> str:
    """A user's first name: a common one, or made up so that the model learns to copy it."""
    draw = rng.random()
    if draw < 0.4:
        return rng.choice(book.people)
    name = ""
    while len(name) < 4:
        closed, count = draw < 0.6, rng.choice((1, 2, 2, 3))
        name = syllables(book, rng, count).capitalize() if closed else _open_syllables(book, rng, count)
    return name


def _open_syllables(book: Book, rng: Random, count: int) -> str:
    """A name such as Mirelo or Tavianna: consonants and vowels by turns, with the ending of a name."""
    parts = (rng.choice(book.unknown["consonants"]) + _vowel(rng) for _ in range(count))
    start = rng.choice("AEIOU") if rng.random() < 0.2 else ""
    return (start + "".join(parts) + rng.choice(book.unknown["endings"])).capitalize()


def _vowel(rng: Random) -> str:
    return rng.choice("aeiou" if rng.random() < 0.75 else ("ua", "ue", "io", "ia", "ei", "ie", "ao", "eu", "oi", "y"))


def hero(book: Book, rng: Random) -> str:
    """The name of a character that nobody knows, and that is no misspelling of one that is known."""
    name = _hero(book, rng)
    while _thinned(name.lower()) & _known_thinned(book):
        name = _hero(book, rng)
    return name


@cache
def _known_thinned(book: Book) -> frozenset[str]:
    """Every real name, alias and longer word of one, with up to two letters left out."""
    texts = {text.lower() for subject in book.subjects for text in (subject.name, *subject.aliases)}
    texts |= {word for text in texts for word in text.split() if len(word) > 4}
    return frozenset().union(*map(_thinned, texts))


def _thinned(text: str) -> frozenset[str]:
    """The text with up to two letters left out: texts at most two slips apart have one of these in common."""
    spots = range(len(text)) if len(text) < 24 else ()
    cuts = [(at, at) for at in spots] + list(combinations(spots, 2))
    return frozenset({text, *("".join(text[at] for at in spots if at not in cut) for cut in cuts)})


def _hero(book: Book, rng: Random) -> str:
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
    if draw < 0.5:
        return rng.choice(("qwerty", "asdf", "zxcv", "uiop", "hjkl", "yxcv", "wert", "poiu")) * rng.randint(1, 3)
    if draw < 0.65:
        return "".join(rng.choices("bcdfghjklmnpqrstvwxz", k=rng.randint(4, 9)))
    if draw < 0.8:
        return rng.choice(("ha", "la", "jk", "as", "df", "zx", "qw", "ks", "fj", "uh")) * rng.randint(3, 6)
    return "".join(rng.choices(string.ascii_lowercase + string.digits + "#;[]=-%&", k=rng.randint(4, 14)))
