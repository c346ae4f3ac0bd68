"""One person's session: the conversation, and the answer to it that is under way."""

from answer import Answer, Outcome
from backend import Backend
from conversation import Conversation
from standing import Watch


class Session:
    """What is kept between runs of the page, and over a reload of it; no other tab sees it."""

    def __init__(self, backend: Backend) -> None:
        self.watch = Watch(backend)
        self.conversation = Conversation()
        self.answer: Answer | None = None
        self._backend = backend

    def ask(self, text: str) -> None:
        """Begins to answer a question; an answer that is still under way is stopped, and what came of it stays."""
        self.stop()
        self.conversation.ask(text)
        self.retry()

    def suggest(self, text: str) -> None:
        """Asks, on an empty page; the second click of a double click comes when it is so no more."""
        if not self.conversation.turns:
            self.ask(text)

    def retry(self) -> None:
        """Begins another answer to a question that has no whole one, unless one is under way (a double click)."""
        if self.answer is None and self.conversation.unanswered:
            self.answer = Answer(self._backend, self.conversation.sent)

    def stop(self) -> None:
        """Ends the answer under way, if there is one, and keeps what came of it."""
        if self.answer is not None:
            self.answer.stop()
            self.settle()

    def settle(self) -> None:
        """Moves an answer that has ended into the conversation."""
        if self.answer is None or self.answer.outcome is Outcome.RUNNING:
            return
        if self.answer.reply is not None:
            self.conversation.complete(self.answer.reply)
        else:
            self.conversation.cut(self.answer.text, self.answer.failure)
            self.watch.forget()
        self.answer = None

    def clear(self) -> None:
        """Starts a new conversation."""
        self.stop()
        self.conversation.clear()
