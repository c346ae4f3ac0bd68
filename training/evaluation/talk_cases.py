"""Cases whose last turn depends on earlier ones, and the scripts of whole conversations."""

import tomllib
from collections.abc import Iterator
from random import Random
from typing import Any

from training.corpus.book import Book, FactKind
from training.evaluation.case import NOT_KNOWN, Case
from training.evaluation.fact_cases import FactCases
from training.evaluation.judging import fact_case, news
from training.paths import HELD_OUT
from training.subject import Subject

_WITH_PRONOUN = ("character", "work", "creator", "team")


class TalkCases:
    """Draws short conversations from the held-out scripts."""

    def __init__(self, book: Book, seed: int) -> None:
        self.book, self.rng, self.facts = book, Random(seed), FactCases(book, seed + 1)
        self.scripts: dict[str, Any] = tomllib.loads((HELD_OUT / "scripts.toml").read_text())

    def cases(self, rounds: int) -> Iterator[Case]:
        """So many rounds of one case of every sort."""
        for _ in range(rounds):
            yield from (self.pronoun(), self.pronoun(), self.elliptic(), self.elliptic(), self.returning())
            yield from (self.repeat(), self.more(), self.remembered("name"), self.remembered("fav"))

    def pronoun(self) -> Case:
        """A second question that only says him, her, it or them."""
        subject, ask, fact = self._pronoun_question()
        return self._case((self._first_question(subject), ask), subject, fact)

    def elliptic(self) -> Case:
        """The same question for another subject."""
        first, fact, other = self._pair()
        turns = (self._question(first, fact), self._filled("elliptic", m=other.spoken))
        return self._case(turns, other, fact)

    def returning(self) -> Case:
        """Back to the one named first, by pronoun: "and her?"."""
        while True:
            first, fact, other = self._pair()
            if first.pronouns != other.pronouns:
                break
        him = first.pronouns[1]
        turns = (self._first_question(first), self._question(other, fact), self._filled("elliptic_pronoun", him=him))
        return self._case(turns, first, fact)

    def repeat(self) -> Case:
        """The last answer once more."""
        subject, fact = self._some_fact()
        turns = (self._question(subject, fact), self._filled("repeat"))
        return self._case(turns, subject, fact)

    def unknown(self) -> Case:
        """A second question, by pronoun, for something that the knowledge holds of nobody."""
        subject = self.facts.subject_with("character", "creators")[0]
        he, him, his = subject.pronouns
        return Case(
            "not known", (self._first_question(subject), self._filled("unknown", he=he, him=him, his=his)), (NOT_KNOWN,)
        )

    def more(self) -> Case:
        """Something known of the subject that the first answer did not tell."""
        subject = self.facts.subject_with("character", "note")[0]
        deny = ("that is all", "don't know", "can't help", "joke", "goodbye")
        turns = (self._first_question(subject), self._filled("more", him=subject.pronouns[1]))
        return Case("conversation", turns, (news(self.book, subject),), deny)

    def remembered(self, key: str) -> Case:
        """The user's name or favourite hero, told two turns before."""
        hero = self.facts.subject_with("character", "creators")[0]
        name = self.rng.choice(self.scripts["names"])
        tell = self._filled(f"{key}_tell", name=name, m=hero.spoken)
        turns = (tell, self._question(*self._some_fact()), self._filled(f"{key}_ask"))
        return Case("conversation", turns, (name if key == "name" else hero.name,))

    def script(self) -> tuple[str, ...]:
        """The user turns of a whole conversation, at least six."""
        makers = (self.pronoun, self.elliptic, self.returning, self.repeat, self.more, lambda: self.remembered("name"))
        turns: list[str] = []
        while len(turns) < 6:
            turns += self.rng.choice(makers)().turns
            if self.rng.random() < 0.5:
                turns.append(self.rng.choice(self.scripts["smalltalk"]))
        return tuple(turns)

    def _case(self, turns: tuple[str, ...], subject: Subject, fact: FactKind) -> Case:
        return fact_case("conversation", turns, self.book, subject, fact)

    def _filled(self, key: str, **values: str) -> str:
        return self.rng.choice(self.scripts[key]).format_map(values)

    def _first_question(self, subject: Subject) -> str:
        return self.facts.worded(self.rng.choice(self.facts.wordings[subject.kind]["who"]["asks"]), subject)

    def _question(self, subject: Subject, fact: FactKind) -> str:
        return self.facts.worded(self.rng.choice(self.facts.wordings[subject.kind][fact.key]["asks"]), subject)

    def _some_fact(self) -> tuple[Subject, FactKind]:
        """A fact of a subject that has a name to ask by."""
        kind = self.rng.choice(_WITH_PRONOUN)
        keys = [key for key, texts in self.facts.wordings[kind].items() if texts["asks"] and not key.startswith("who_")]
        return self.facts.subject_with(kind, self.rng.choice(keys))

    def _pair(self) -> tuple[Subject, FactKind, Subject]:
        """Two subjects of a kind and a fact that both know."""
        while True:
            subject, fact = self._some_fact()
            other, _ = self.facts.subject_with(subject.kind, fact.key)
            if fact.key != "who" and other is not subject:
                return subject, fact, other

    def _pronoun_question(self) -> tuple[Subject, str, FactKind]:
        while True:
            entry = self.rng.choice(self.scripts["pronoun"])
            subject = self.book.pick(self.rng)
            facts = [fact for fact in self.book.known(subject) if fact.key == entry["key"]]
            if facts and subject.kind in _WITH_PRONOUN:
                he, him, his = subject.pronouns
                return subject, entry["ask"].format(he=he, him=him, his=his), facts[0]
