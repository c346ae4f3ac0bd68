"""The conversation of one session: what was said, what it took, and what can be tried again. No I/O, no Streamlit."""

from dataclasses import dataclass

from parley.client import Reply
from parley.contract.chat import Message
from parley.contract.errors import ParleyError
from parley.contract.openai import Usage


@dataclass(frozen=True)
class Turn:
    """One turn as it is shown. `message` is sent back byte for byte.

    Attributes:
        usage: the answer's counted tokens; None for a question and for an answer that was cut short.
        stopped: the person stopped it.
    """

    message: Message
    usage: Usage | None = None
    stopped: bool = False


class Conversation:
    """Rules that always hold:

    1. What was typed stays until it is cleared, whatever happens to its answer.
    2. There is a `failure` only while the last question has no whole answer; text that came before it is kept.
    3. `spent` holds the usage of every whole answer of the session, cleared ones too.
    """

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.failure: ParleyError | None = None
        self.spent: list[Usage] = []
        self.uncounted = 0
        """Answers that were cut short, for which no count came."""

    @property
    def messages(self) -> list[Message]:
        """The turns as they are sent."""
        return [turn.message for turn in self.turns]

    def ask(self, text: str) -> None:
        """Adds a question; a failure before it is no longer to be retried."""
        self.failure = None
        self.turns.append(Turn(Message("user", text)))

    def until_question(self) -> list[Message]:
        """What to send for an answer: everything up to and including the last question."""
        messages = self.messages
        while messages and messages[-1].role != "user":
            messages.pop()
        return messages

    def complete(self, reply: Reply) -> None:
        """Adds the whole answer, in place of what a failed attempt left."""
        self._answer(reply.text, reply.usage, stopped=False)
        self.failure = None
        if reply.usage is not None:
            self.spent.append(reply.usage)

    def stop(self, text: str) -> None:
        """Keeps the part of an answer that came before the person stopped it."""
        self.failure = None
        self._keep_part(text, stopped=True)

    def fail(self, text: str, failure: ParleyError) -> None:
        """Keeps the part of an answer that came before it failed."""
        self.failure = failure
        self._keep_part(text, stopped=False)

    def clear(self) -> None:
        """Forgets what was said, and not what it took."""
        self.turns, self.failure = [], None

    def _keep_part(self, text: str, stopped: bool) -> None:
        if text:
            self.uncounted += 1
            self._answer(text, None, stopped)

    def _answer(self, text: str, usage: Usage | None, stopped: bool) -> None:
        del self.turns[len(self.until_question()) :]
        self.turns.append(Turn(Message("assistant", text), usage, stopped))
