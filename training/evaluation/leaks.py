"""Leaks: held-out wordings that a template of the corpus writes, whatever fills its slots."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from training.corpus.book import Book
from training.corpus.grammar import Phrase, parse, slots
from training.paths import HELD_OUT
from training.texts import template_files, texts

NAMED = {"n", "o", "s", "t", "m", "he", "him", "his", "u", "us"}
"""Slots that name somebody, by name or pronoun; a wording is the same whoever that is."""

_SUBJECT = "zz"
_INVENTED = {"gibberish", "foreign_words", "a", "b", "c", "q"}
"""What fills these is made up at random, or is a whole sentence: such templates are no wording of their own."""
_NO_WORDING = {"want", "deny", "group", "key", "names"}
_NOT_ASKED = {"topic", "answer", "nouns", "replies", "known", "unknown"}
_PERSONAS = "systems"
_SLOT = re.compile(r"\{(\w+)\}")


def leaks(book: Book, phrasings: Path) -> dict[str, str]:
    """Each held-out wording that is trained on, with the template that writes it."""
    held_out = "\n".join(_bare(text) for text in wordings())
    words = _words(book)
    found: dict[str, str] = {}
    for template in _templates(phrasings):
        pattern = re.compile(f"(?m)^ ?{_pattern(parse(template), words)} ?$")
        found |= {match[0].strip(): template for match in pattern.finditer(held_out)}
    return {text: found[bare] for text in wordings() if (bare := _bare(text)) in found}


def wordings() -> Iterator[str]:
    """Every held-out wording, with its slots open."""
    for path in sorted(HELD_OUT.glob("*.toml")):
        yield from texts(path, _NO_WORDING)


def _templates(phrasings: Path) -> Iterator[str]:
    """Every template that could write a held-out wording."""
    for path in template_files(phrasings):
        if path.stem == _PERSONAS:
            continue
        for text in texts(path, _NOT_ASKED):
            if not slots(text) & _INVENTED and _has_words(text):
                yield text


def _has_words(template: str) -> bool:
    """Whether a template says something beside what fills its slots."""
    return bool(re.search(r"[a-z]{3}", _SLOT.sub("", template)))


def _words(book: Book) -> dict[str, str]:
    """A pattern for each slot that is filled from a list."""
    lists: dict[str, list[str]] = {slot: words for slot, words in book.words.items() if isinstance(words, list)}
    heroes = [hero.name for hero in book.heroes]
    lists |= {"hero": heroes, "hero2": heroes, "fav": heroes, "name": book.people, "me": ["parley"]}
    nouns = [_pattern(parse(fact.nouns), {}) for kind in book.kinds.values() for fact in kind if fact.nouns]
    patterns = {slot: "|".join(sorted({re.escape(_bare(word)) for word in words})) for slot, words in lists.items()}
    return {slot: f"(?:{pattern})" for slot, pattern in (patterns | {"noun": "|".join(nouns)}).items()}


def _pattern(phrase: Phrase, words: Mapping[str, str]) -> str:
    """A regular expression for all texts of a phrase, made bare."""
    parts = []
    for part in phrase:
        if isinstance(part, str):
            parts += [_literal(piece, words) for piece in re.split(r"(\{\w+\})", part)]
        else:
            parts.append("(?:" + "|".join(_pattern(option, words) for option in part) + ")")
    return "".join(parts)


def _literal(text: str, words: Mapping[str, str]) -> str:
    slot = _SLOT.fullmatch(text)
    if slot is None:
        return re.sub(r"[\W_]+", " ?", text.lower())
    if slot[1] in NAMED:
        return f"{_SUBJECT}(?: s)?"
    return f"(?:{words[slot[1]]}|{_open(slot[1])})" if slot[1] in words else _open(slot[1])


def _bare(text: str) -> str:
    """Letters and digits only, in lower case; an open slot is one word."""
    opened = _SLOT.sub(lambda slot: f" {_SUBJECT} " if slot[1] in NAMED else f" {_open(slot[1])} ", text.lower())
    return re.sub(r"[\W_]+", " ", opened).strip()


def _open(slot: str) -> str:
    return f"slot{slot.replace('_', '')}"
