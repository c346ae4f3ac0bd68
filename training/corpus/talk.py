"""A talk in the making: what has been said and what later turns may refer to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from training.corpus.book import Book, FactKind
from training.corpus.grammar import choose, fill
from training.subject import Subject

Turn = tuple[str, str]
Move = Callable[["Talk"], Turn | None]


@dataclass
class Talk:
    """The state of one conversation. A move reads it, changes it and gives the next user text and reply.

    `subject` and `fact` are what an elliptic question ("and Robin?") or a pronoun refers to.
    """

    book: Book
    rng: Random
    me: str = "Parley"
    turns: list[Turn] = field(default_factory=list)
    subject: Subject | None = None
    fact: FactKind | None = None
    by_pronoun: dict[str, Subject] = field(default_factory=dict)
    round: str = ""
    given: list[str] = field(default_factory=list)
    user: dict[str, str] = field(default_factory=dict)

    @property
    def last_reply(self) -> str:
        """What the assistant said last, or nothing."""
        return self.turns[-1][1] if self.turns else ""

    @property
    def said(self) -> str:
        """Everything that the assistant has said."""
        return " ".join(reply for _, reply in self.turns)

    def write(self, templates: Sequence[str], **values: str) -> str:
        """A text of one of the templates, some of its words swapped for others that mean the same."""
        text = choose(self.rng.choice(templates), self.rng)
        return fill(self.book.thesaurus.swapped(text, self.rng), values)

    def turn_to(self, subject: Subject, fact: FactKind | None) -> None:
        """Make a subject, and the fact asked of it, what is being talked about."""
        self.subject, self.fact, self.round = subject, fact, ""
        self.by_pronoun[subject.pronouns[1]] = subject

    def leave(self) -> None:
        """Talk of something else: a pronoun would now be out of place."""
        self.subject = self.fact = None
        self.round = ""
