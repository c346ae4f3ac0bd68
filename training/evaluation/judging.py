"""What a reply about a fact must hold and what it must not, taken from the knowledge."""

from training.corpus.book import Book, FactKind
from training.corpus.grammar import slots
from training.evaluation.case import Case
from training.subject import Subject

_NOT_VALUES = {"n", "o", "s", "t", "is", "is_", "was", "he", "him", "his", "do", "he_is"}
# What tells a subject from the others, any one of which is enough to say who or what it is, and the fields in which
# such an answer might go wrong. Terms, places and items have one sentence that says it all: the reference answer's.
_IDENTITY = {
    "character": ("real_name", "origin", "publisher"),
    "work": ("about", "writers", "artists"),
    "team": ("about", "members"),
    "creator": ("known_for",),
    "publisher": ("about", "known_for"),
}
_LISTED = {"writers", "artists", "known_for"}  # one item says enough
_ALSO_SAID = {
    "character": ("creators", "powers", "job"),
    "work": ("year",),
    "team": ("publisher",),
    "creator": ("nationality",),
    "publisher": (),
}
_FIELDS = {"authors": ("writers", "artists"), "sole_author": ("writers", "artists")}
_HEADED = {"publisher", "city"}  # "Portland, Oregon", "DC Comics, later under Vertigo"
_BLURRED = {"side", "role", "note", "note2", "example", "contrast"}  # values that a right answer may hold by chance


def fact_case(group: str, turns: tuple[str, ...], book: Book, subject: Subject, fact: FactKind) -> Case:
    """The case whose last turn asks for a fact of a subject."""
    if fact.key == "who" and subject.kind in _IDENTITY:
        fields = (*_IDENTITY[subject.kind], *_ALSO_SAID[subject.kind])
        others = (*rivals(book, subject, fields), *_other_sides(book, subject), *_other_roles(book, subject))
        return Case(group, turns, identity(subject), rivals=others)
    if fact.reverse:
        name = subject.name.removeprefix("The ")
        return Case(group, turns, (name,), rivals=_foreign(subject, [other.name for other in _peers(book, subject)]))
    if fact.key == "role":
        return Case(group, turns, tuple(sorted(_parts(subject.fields["role"][0]))), rivals=_other_roles(book, subject))
    found = value_slots(book, subject, fact)
    fields = tuple(field for slot in found for field in _FIELDS.get(slot, (slot.removeprefix("a_"),)))
    want = tuple(word for slot in found for word in words(book, subject, slot))
    return Case(group, turns, tuple(dict.fromkeys(want)), rivals=rivals(book, subject, fields))


def identity(subject: Subject) -> tuple[str, ...]:
    """What says who or what a subject is: one value that identifies it, and a name of it or a value of its alone.

    A reference answer tells more than that; whoever asks only "who is that" is served by the main point. Whatever
    else the reply tells is held against the values of all others by `rivals`.
    """
    keys = [key for key in _IDENTITY[subject.kind] if key in subject.fields]
    if subject.kind == "character" and "publisher" not in keys:
        keys.append("creators")
    values = {key: subject.fields[key] if key in _LISTED else [_joined(subject, key)] for key in keys}
    own = [item for key in keys if key in ("real_name", "origin", "about") for item in values[key]]
    names = [subject.name.removeprefix("The "), *subject.aliases, *own]
    return ("|".join(item for items in values.values() for item in items), "|".join(names))


def value_slots(book: Book, subject: Subject, fact: FactKind) -> list[str]:
    """The slots of the reference answer whose values a right answer must hold."""
    values = book.slots_of[subject.name]
    template = next(answer for answer in fact.answers if slots(answer) <= values.keys())
    return [slot for slot in sorted(slots(template)) if slot.lower() not in _NOT_VALUES]


def words(book: Book, subject: Subject, slot: str) -> list[str]:
    """What a reply must hold of a slot: every item of a list, in any order, and of an address or imprint the head."""
    fields = [subject.fields[field] for field in _FIELDS.get(slot, (slot,)) if field in subject.fields]
    items = [item for items in fields for item in items] or [book.slots_of[subject.name][slot]]
    return [item.split(", ")[0] for item in items] if slot in _HEADED else items


def rivals(book: Book, subject: Subject, fields: tuple[str, ...]) -> tuple[str, ...]:
    """The values of these fields that other subjects of the kind have and this one has nowhere."""
    pools = [book.pools.get((subject.kind, field), []) for field in fields if field not in _BLURRED]
    return _foreign(subject, [value for pool in pools for value in pool])


def news(book: Book, subject: Subject) -> str:
    """All that an answer to "who is that" leaves out and a question for more may bring, parted by `|`."""
    first = next(fact for fact in book.known(subject) if fact.key == "who")
    said = (first.answer(book.slots_of[subject.name]) or "").lower()
    values = [_joined(subject, key) for key in subject.fields if key != "side"]
    return "|".join(value for value in values if value.lower() not in said)


def _other_sides(book: Book, subject: Subject) -> list[str]:
    """`DC Comics villain`, said of a hero."""
    sides = set(book.pools.get((subject.kind, "side"), [])) - set(subject.fields.get("side", []))
    return [f"{name} {side}" for name in subject.fields.get("publisher", []) for side in sorted(sides)]


def _other_roles(book: Book, subject: Subject) -> tuple[str, ...]:
    """Roles that say more or something else than the subject's: `writer and artist` of a writer."""
    roles = book.pools.get((subject.kind, "role"), [])
    return tuple(role for role in roles if not _parts(role) <= _parts(subject.fields["role"][0]))


def _parts(role: str) -> set[str]:
    return set(role.split(" and "))


def _peers(book: Book, subject: Subject) -> list[Subject]:
    return [other for other in book.subjects if other.kind == subject.kind and other is not subject]


def _foreign(subject: Subject, values: list[str]) -> tuple[str, ...]:
    """The values that stand in nothing known of the subject and hold none of its own values themselves."""
    fields = [items for key, items in subject.fields.items() if key != "side"]
    own = [subject.name, *subject.aliases, *(item for items in fields for item in items)]
    known = "\n".join(own).lower()
    foreign = {value for value in values if value.lower() not in known and not any(item in value for item in own)}
    return tuple(sorted(foreign))


def _joined(subject: Subject, key: str) -> str:
    return subject.slots()[key]
