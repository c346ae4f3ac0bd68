"""The conversation of one session: what was said, what it took, and what can be tried again. No I/O, no Streamlit.

Rules that always hold:
1. What was typed stays until it is cleared, whatever happens to its answer.
2. Part of an answer stays until another attempt at it brings more than nothing.
3. What is sent back is, byte for byte, what was typed and what came; but a question that has no answer is not sent
   again with the next one: the templates of some models refuse two questions in a row.
"""

from dataclasses import dataclass
from itertools import pairwise

from parley.contract.chat import Message
from parley.contract.errors import ParleyError
from parley.contract.openai import Usage
from parley.reply import Reply


@dataclass(frozen=True)
class Turn:
    """One turn. `usage` is counted by whatever answered; `whole` is false for an answer that was cut short.

    `limited` is true for a whole answer that ended at its token or time limit.
    """

    message: Message
    usage: Usage | None = None
    whole: bool = True
    limited: bool = False

    @property
    def cut(self) -> str:
        """Why there is no more of an answer that its model did not end, in words; empty for one that it did."""
        if not self.whole:
            return "cut short"
        return "cut at the length limit" if self.limited else ""


class Conversation:
    """Turns, in order. `spent` outlives `clear`: it holds the usage of every whole answer of the session."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.failure: ParleyError | None = None
        """Why the last question has no whole answer, unless the person stopped it."""
        self.spent: list[Usage] = []
        self.uncounted = 0
        """Answers of the session that were cut short, for which no count came."""

    @property
    def asked(self) -> list[Turn]:
        """The turns up to and including the last question."""
        questions = [index for index, turn in enumerate(self.turns) if turn.message.role == "user"]
        return self.turns[: questions[-1] + 1] if questions else []

    @property
    def sent(self) -> list[Message]:
        """What is sent to get an answer to the last question: of questions in a row the last one only."""
        asked = [turn.message for turn in self.asked]
        return [message for message, after in pairwise(asked) if message.role != after.role] + asked[-1:]

    @property
    def unanswered(self) -> bool:
        """Whether the last question has no whole answer, so that another attempt makes sense."""
        return bool(self.turns) and (self.turns[-1].message.role == "user" or not self.turns[-1].whole)

    def ask(self, text: str) -> None:
        """Adds a question."""
        self.failure = None
        self.turns.append(Turn(Message("user", text)))

    def complete(self, reply: Reply) -> None:
        """Takes the whole answer."""
        self.failure = None
        self._answer(Turn(Message("assistant", reply.text), reply.usage, limited=reply.limited))
        if reply.usage is not None:
            self.spent.append(reply.usage)

    def cut(self, text: str, failure: ParleyError | None) -> None:
        """Takes the part of an answer that came before it failed, or was stopped (no failure)."""
        self.failure = failure
        if text:
            self.uncounted += 1
            self._answer(Turn(Message("assistant", text), whole=False))

    def clear(self) -> None:
        """Forgets what was said, and not what it took."""
        self.turns, self.failure = [], None

    def _answer(self, turn: Turn) -> None:
        self.turns = [*self.asked, turn]
