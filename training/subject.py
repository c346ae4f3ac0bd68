"""A subject of the knowledge: one character, team, work, creator, publisher, term, place or item."""

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KINDS = ("character", "team", "work", "creator", "publisher", "term", "place", "item")
PRONOUNS = {
    "he": ("he", "him", "his"),
    "she": ("she", "her", "her"),
    "they": ("they", "them", "their"),
    "it": ("it", "it", "its"),
}
_BARE = {"Batman", "Swamp Thing", "Blue Beetle", "Black Widow", "Scarlet Witch", "Invisible Woman", "Black Panther"}
_BARE |= {"Ghost Rider", "Arkham Asylum", "Red Hood", "Reverse-Flash"}
_WITH_THE = {"Hulk", "Justice League", "Justice Society of America"}
_NOT_FACTS = {"name", "kind", "aliases", "pronoun", "article"}
_PLURAL = re.compile(r"(?<!s)s$|[Mm]en$|^\w+s of |Four$|Six$|Five$|Boys$")


@dataclass(frozen=True)
class Subject:
    """Facts about one thing. A field's value is a list of strings; most lists have one item."""

    name: str
    kind: str
    aliases: tuple[str, ...]
    pronouns: tuple[str, str, str]
    article: str
    fields: dict[str, list[str]] = field(hash=False)

    @property
    def is_plural(self) -> bool:
        """Whether the name takes a plural verb, as `the X-Men` does."""
        return self.kind == "team" and bool(_PLURAL.search(self.name))

    def slots(self) -> dict[str, str]:
        """What templates may say of the subject: every field, its name and its pronouns."""
        values = {key: joined(items) for key, items in self.fields.items()}
        he, him, his = self.pronouns
        verb = "are" if self.is_plural else "is"
        named = {"n": self.spoken, "o": self.spoken, "s": possessive(self.spoken), "is": verb}
        named |= {"t": self.name, "was": "were" if self.is_plural else "was", "is_": "is"}
        named |= {"he": he, "him": him, "his": his, "do": "do" if he == "they" else "does"}
        named |= {"He_is": "They are" if he == "they" else f"{he.capitalize()} is"}
        capitals = {key.capitalize(): capitalised(value) for key, value in named.items()}
        return values | _with_articles(values) | self._authors() | named | capitals

    def _authors(self) -> dict[str, str]:
        """Who made a work: `authors` in all, and `sole_author` when one hand wrote and drew it."""
        writers, artists = self.fields.get("writers", []), self.fields.get("artists", [])
        if not writers or not artists:
            return {}
        authors = {"authors": joined(list(dict.fromkeys(writers + artists)))}
        return authors | ({"sole_author": joined(writers)} if writers == artists else {})

    @property
    def spoken(self) -> str:
        """The name as it stands inside a sentence, with `the` where a team's plural name needs it."""
        if self.kind == "term" and self.article:
            return f"{self.article} {self.name}"
        if self.kind in ("work", "creator", "publisher"):
            return self.name
        if self.name.startswith("The "):
            return f"the {self.name[4:]}"
        known_with_the = f"the {self.name}" in self.aliases and self.name not in _BARE
        wants_the = self.is_plural or known_with_the or self.name in _WITH_THE
        return f"the {self.name}" if wants_the else self.name


def _with_articles(values: dict[str, str]) -> dict[str, str]:
    """`{a_form}` says `a graphic novel` where `{form}` says `graphic novel`."""
    wanted = ("form", "side", "role", "nationality", "publisher", "genre")
    return {f"a_{key}": with_article(values[key]) for key in wanted if key in values}


def with_article(noun: str) -> str:
    """Put `a` or `an` before a noun phrase that has no article yet."""
    if noun.startswith(("a ", "an ", "the ")):
        return noun
    return f"{'an' if noun[0].lower() in 'aeio' else 'a'} {noun}"


def capitalised(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def possessive(name: str) -> str:
    """`Batman` becomes `Batman's`, `the X-Men` becomes `the X-Men's`, `Avengers` becomes `Avengers'`."""
    return f"{name}'" if name.endswith("s") else f"{name}'s"


def joined(items: list[str]) -> str:
    """Join items as a sentence does: `A, B and C`."""
    if len(items) < 2:
        return items[0]
    return f"{', '.join(items[:-1])} and {items[-1]}"


def subject_of(table: dict[str, Any]) -> Subject:
    """Make a subject of one `[[subject]]` table. Raises ValueError on an unknown kind or an empty field."""
    name, kind = table["name"], table["kind"]
    if kind not in KINDS:
        raise ValueError(f"{name}: unknown kind {kind!r}")
    fields = {key: _texts(name, key, value) for key, value in table.items() if key not in _NOT_FACTS}
    pronoun = table.get("pronoun") or ("they" if kind == "team" else "it")
    aliases = tuple(alias for alias in table.get("aliases", []) if alias != name)
    return Subject(name, kind, aliases, PRONOUNS[pronoun], table.get("article", ""), fields)


def _texts(name: str, key: str, value: Any) -> list[str]:
    texts = [str(item) for item in (value if isinstance(value, list) else [value])]
    if not texts or not all(text.strip() for text in texts):
        raise ValueError(f"{name}: empty field {key!r}")
    return texts


def load_subjects(folder: Path) -> list[Subject]:
    """Read every TOML file of the folder, in the order of the names of the files."""
    tables = [table for path in sorted(folder.glob("*.toml")) for table in tomllib.loads(path.read_text())["subject"]]
    return [subject_of(table) for table in tables]
