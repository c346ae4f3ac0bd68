"""One answer under way, read by a thread of its own.

A click on any widget reruns the page and would kill a stream that lives in it. Here the page only looks: it may come
and go, and the text goes on growing. When nobody looks for a while, because the tab was closed, the answer is stopped,
so that it frees its place on the server. A second thread sees to that: the one that reads may have nothing to read.
"""

import time
from collections.abc import Sequence
from enum import Enum
from threading import Event, Thread

from backend import Backend, Stream
from parley.contract.chat import Message
from parley.contract.errors import ErrorCode, ParleyError
from parley.reply import Reply

ABANDONED_AFTER = 150.0
"""Seconds without a look; browsers let a hidden tab look once a minute only."""


class Outcome(Enum):
    """Where an answer stands."""

    RUNNING = "running"
    COMPLETE = "complete"
    STOPPED = "stopped"
    FAILED = "failed"


class Answer:
    """Begins at once to read the answer to a conversation."""

    def __init__(self, backend: Backend, messages: Sequence[Message]) -> None:
        self.started = time.monotonic()
        self.reply: Reply | None = None
        self._failure: ParleyError | None = None
        self._pieces: list[str] = []
        self._stream: Stream | None = None
        self._stopped = Event()
        self._ended = Event()
        self._looked_at = self.started
        Thread(target=self._read, args=(backend, list(messages)), daemon=True).start()
        Thread(target=self._watch, daemon=True).start()

    @property
    def text(self) -> str:
        """What has come so far, exactly as it came."""
        return "".join(self._pieces)

    @property
    def failure(self) -> ParleyError | None:
        """Why it failed; None unless the outcome is FAILED."""
        if self.outcome is not Outcome.FAILED:
            return None
        return self._failure or ParleyError(ErrorCode.INTERNAL_ERROR, "The page itself failed; its log says why.")

    @property
    def outcome(self) -> Outcome:
        """Derived from what happened first; final once it is not RUNNING."""
        if self.reply is not None:
            return Outcome.COMPLETE
        if self._stopped.is_set():
            return Outcome.STOPPED
        return Outcome.FAILED if self._ended.is_set() else Outcome.RUNNING

    def look(self) -> Outcome:
        """The outcome, for a page that is being watched."""
        self._looked_at = time.monotonic()
        return self.outcome

    def stop(self) -> None:
        """Ends the answer with the text that has come; does nothing to one that has ended."""
        if self.outcome is Outcome.RUNNING:
            self._stopped.set()  # first: a stream that is not there yet finds it set
            if self._stream is not None:
                self._stream.cancel()

    def _read(self, backend: Backend, messages: Sequence[Message]) -> None:
        try:
            with backend.stream(messages) as self._stream:
                if self._stopped.is_set():  # before there was a stream to cancel
                    return
                for piece in self._stream:
                    if self._stopped.is_set():
                        return
                    self._pieces.append(piece)
                self.reply = None if self._stopped.is_set() else self._stream.reply
        except ParleyError as error:
            self._failure = error
        finally:
            self._ended.set()

    def _watch(self) -> None:
        """Stops the answer once nobody looks, also while the server sends no text."""
        while not self._ended.wait(self._patience()):
            if self._patience() <= 0:
                self.stop()
                return

    def _patience(self) -> float:
        """Seconds until the answer counts as abandoned."""
        return self._looked_at + ABANDONED_AFTER - time.monotonic()
