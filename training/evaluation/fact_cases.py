"""Cases about facts, written from the knowledge and the held-out wordings."""

import re
import tomllib
from collections.abc import Iterator
from random import Random
from typing import Any

from training.corpus.book import Book, FactKind
from training.corpus.grammar import slots
from training.corpus.noise import misspell
from training.evaluation.case import Case
from training.paths import HELD_OUT
from training.subject import Subject

_NOT_VALUES = {"n", "o", "s", "t", "is", "is_", "was", "he", "him", "his", "do", "he_is"}
_NAME = re.compile(r"[^\W\d_]{5,}")


class FactCases:
    """Draws questions from the held-out wordings, each for a random subject that can answer it."""

    def __init__(self, book: Book, seed: int) -> None:
        self.book, self.rng = book, Random(seed)
        self.wordings = wordings()

    def questions(self, count: int, form: str, group: str) -> Iterator[Case]:
        """Cases of one form, `asks` or `bits`, with every kind of fact in turn."""
        keys = [(kind, key) for kind, facts in self.wordings.items() for key, texts in facts.items() if texts[form]]
        for number in range(count):
            kind, key = keys[number % len(keys)]
            subject, fact = self.subject_with(kind, key)
            text = self.rng.choice(self.wordings[kind][key][form])
            yield Case(group, (self.worded(text, subject),), wanted(self.book, subject, fact))

    def misspelt(self, count: int) -> Iterator[Case]:
        """Questions in lower case, without marks, with a name misspelt as training never saw it."""
        while count:
            case = next(self.questions(1, self.rng.choice(("asks", "bits")), "understanding"))
            kind = self.rng.choice(["character", "work", "creator"])
            key = self.rng.choice([key for key in self.wordings[kind] if not key.startswith("who_")])
            subject, fact = self.subject_with(kind, key)
            name = misspelt_name(subject.name, self.rng)
            if name is None:
                continue
            text = self.rng.choice(self.wordings[kind][key]["asks"])
            text = re.sub(r"[',?.:;]", "", self.worded(text, subject, name)).lower()
            yield Case(case.group, (text,), wanted(self.book, subject, fact))
            count -= 1

    def subject_with(self, kind: str, key: str) -> tuple[Subject, FactKind]:
        """A subject of a kind, the popular ones more often, that can answer a kind of fact."""
        while True:
            subject = self.book.pick(self.rng)
            for fact in self.book.known(subject):
                if subject.kind == kind and fact.key == key:
                    return subject, fact

    def worded(self, text: str, subject: Subject, name: str | None = None) -> str:
        """The wording filled in for a subject."""
        values = self.book.slots_of[subject.name]
        return text.format_map(values if name is None else {**values, "n": name, "o": name, "t": name})


def wordings() -> dict[str, dict[str, dict[str, Any]]]:
    """The held-out wordings of questions for facts: by kind of subject, kind of fact and form."""
    return tomllib.loads((HELD_OUT / "facts.toml").read_text())


def misspelt_name(name: str, rng: Random) -> str | None:
    """The name with one word misspelt in a way kept from training, or None if no word is long enough."""
    words = _NAME.findall(name)
    if not words:
        return None
    word = rng.choice(words)
    slip = misspell(word, rng, held_out=True)
    return None if slip == word else name.replace(word, slip)


def wanted(book: Book, subject: Subject, fact: FactKind) -> tuple[str, ...]:
    """The values that a right answer must hold: those of the reference answer, or the name for reverse questions."""
    values = book.slots_of[subject.name]
    if fact.reverse:
        return (values["n"],)
    template = next(answer for answer in fact.answers if slots(answer) <= values.keys())
    keys = [key for key in slots(template) if key.lower() not in _NOT_VALUES]
    return tuple(values[key] for key in sorted(keys))
