"""The book that the corpus writer leafs through: subjects, phrasings and what is told apart by them."""

import tomllib
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from training.corpus.grammar import slots
from training.corpus.thesaurus import Thesaurus
from training.subject import KINDS, Subject, joined


@dataclass(frozen=True)
class FactKind:
    """One kind of fact: how it is asked for and answered."""

    key: str
    asks: tuple[str, ...]
    bits: tuple[str, ...]
    checks: tuple[str, ...]
    answers: tuple[str, ...]
    nouns: str
    reverse: str

    def answer(self, values: dict[str, str]) -> str | None:
        """The first answer that the values can fill, or None."""
        for template in self.answers:
            if slots(template) <= values.keys():
                return template.format_map(values)
        return None


def _fact_kind(key: str, table: dict[str, Any]) -> FactKind:
    asks, bits, checks, answers = (tuple(table.get(name, ())) for name in ("asks", "bits", "checks", "answer"))
    return FactKind(key, asks, bits, checks, answers, table.get("nouns", ""), table.get("reverse", ""))


class Book:
    """Subjects and phrasings, read once; what is derived from them is computed when first asked for."""

    def __init__(self, subjects: list[Subject], phrasings: Path) -> None:
        self.subjects = subjects
        tables = {path.stem: tomllib.loads(path.read_text()) for path in sorted(phrasings.glob("*.toml"))}
        self.kinds = {kind: [_fact_kind(*item) for item in tables[kind].items()] for kind in KINDS}
        self.frames, self.words, self.memory = tables["frames"], tables["words"], tables["memory"]
        self.rounds, self.systems, self.people = tables["rounds"], tables["systems"], tables["people"]["names"]
        self.unknown, self.beyond = tables["unknown"], tables["beyond"]
        self.thesaurus = Thesaurus(tables["thesaurus"]["groups"])
        self.smalltalk, self.declines = tables["smalltalk"]["exchange"], tables["declines"]["exchange"]
        self._popular = set(tables["popular"]["names"])

    @cached_property
    def weights(self) -> list[float]:
        """How often each subject is spoken of."""
        return [3.0 if subject.name in self._popular else 1.0 for subject in self.subjects]

    @cached_property
    def heroes(self) -> list[Subject]:
        """The characters that somebody may call a favourite."""
        return [subject for subject in self.subjects if subject.kind == "character"]

    @cached_property
    def slots_of(self) -> dict[str, dict[str, str]]:
        """The slots of every subject, by name."""
        return {subject.name: subject.slots() for subject in self.subjects}

    @cached_property
    def pools(self) -> dict[tuple[str, str], list[str]]:
        """All values of a field over the subjects of a kind: where wrong answers come from."""
        pools: dict[tuple[str, str], set[str]] = defaultdict(set)
        for subject in self.subjects:
            for key, items in subject.fields.items():
                pools[subject.kind, key].update(items)
            if "sole_author" in self.slots_of[subject.name]:
                pools[subject.kind, "authors"].update(subject.fields["writers"])
        return {key: sorted(items) for key, items in pools.items()}

    @cached_property
    def _owners(self) -> Counter[str]:
        """How many subjects a text could mean: by name, by alias, by the value of any field."""
        owners: Counter[str] = Counter()
        for subject in self.subjects:
            texts = {subject.name, *subject.aliases, *(joined(items) for items in subject.fields.values())}
            owners.update({text.lower() for text in texts})
        return owners

    def known(self, subject: Subject) -> list[FactKind]:
        """The kinds of fact that can be answered for a subject, reverse ones only where they mean it alone."""
        return self._known[subject.name]

    @cached_property
    def _known(self) -> dict[str, list[FactKind]]:
        return {
            subject.name: [fact for fact in self.kinds[subject.kind] if self._answers(subject, fact)]
            for subject in self.subjects
        }

    def _answers(self, subject: Subject, fact: FactKind) -> bool:
        values = self.slots_of[subject.name]
        if fact.reverse and self._owners[values.get(fact.reverse, "").lower()] != 1:
            return False
        return fact.answer(values) is not None

    def missing(self, subject: Subject) -> list[FactKind]:
        """The kinds of fact that people may ask for but the knowledge lacks."""
        known = set(self.known(subject))
        skipped = {"note", "note2", "side"}
        facts = self.kinds[subject.kind]
        return [fact for fact in facts if fact not in known and not fact.reverse and fact.key not in skipped]

    def pick(self, rng: Random) -> Subject:
        """A subject, the popular ones more often."""
        return rng.choices(self.subjects, self.weights)[0]
