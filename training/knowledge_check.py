"""Checks on the knowledge: unique names, enough subjects, enough facts."""

from collections import Counter

from training.subject import Subject

_LEAST_SUBJECTS, _LEAST_FACTS = 300, 2_500
_EMPTY = {"unknown", "various", "none", "n/a", "?"}


def check_knowledge(subjects: list[Subject]) -> str:
    """Say how much there is. Raises ValueError when a name stands for two subjects or there is too little."""
    names = Counter(text.lower() for subject in subjects for text in {subject.name, *subject.aliases})
    doubled = [name for name, count in names.items() if count > 1]
    empty = [s.name for s in subjects for items in s.fields.values() if _EMPTY & {item.lower() for item in items}]
    facts = sum(len(items) for subject in subjects for items in subject.fields.values())
    if doubled or empty:
        raise ValueError(f"names with two meanings: {doubled}; empty values: {empty}")
    if len(subjects) < _LEAST_SUBJECTS or facts < _LEAST_FACTS:
        raise ValueError(f"too little: {len(subjects)} subjects, {facts} facts")
    return f"{len(subjects)} subjects, {facts} facts"
