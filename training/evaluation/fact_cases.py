"""Cases about facts, written from the knowledge and the held-out wordings."""

import re
import tomllib
from collections.abc import Iterator
from random import Random
from typing import Any

from training.corpus.book import Book, FactKind
from training.corpus.noise import misspell
from training.evaluation.case import NOT_KNOWN, Case
from training.evaluation.judging import fact_case
from training.paths import HELD_OUT
from training.subject import Subject, possessive

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
            yield fact_case(group, (self.worded(text, subject),), self.book, subject, fact)

    def lacking(self, count: int) -> Iterator[Case]:
        """Questions that fit their subject and that the knowledge cannot answer, with every kind of fact in turn."""
        missing = [(subject, fact.key) for subject in self.book.subjects for fact in self.book.missing(subject)]
        keys = [(kind, key) for kind, facts in self.wordings.items() for key in facts]
        subjects = {at: [subject for subject, key in missing if (subject.kind, key) == at] for at in keys}
        asked = [at for at in keys if subjects[at] and self.wordings[at[0]][at[1]]["asks"]]
        for number in range(count):
            kind, key = asked[number % len(asked)]
            text = self.rng.choice(self.wordings[kind][key]["asks"])
            yield Case("not known", (self.worded(text, self.rng.choice(subjects[kind, key])),), (NOT_KNOWN,))

    def misspelt(self, count: int) -> Iterator[Case]:
        """Questions in lower case, without marks, with a name misspelt as training never saw it."""
        while count:
            kind = self.rng.choice(["character", "work", "creator"])
            key = self.rng.choice([key for key in self.wordings[kind] if not key.startswith("who_")])
            subject, fact = self.subject_with(kind, key)
            name = misspelt_name(subject.name, self.rng)
            if name is None:
                continue
            text = self.rng.choice(self.wordings[kind][key]["asks"])
            text = re.sub(r"[',?.:;]", "", self.worded(text, subject, name)).lower()
            yield fact_case("understanding", (text,), self.book, subject, fact)
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
        named = {} if name is None else {"n": name, "o": name, "t": name, "s": possessive(name)}
        return text.format_map(values | named)


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
