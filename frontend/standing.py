"""Whether answers can come, and from which model: asked now and then, because asking may take seconds."""

import time
from dataclasses import dataclass, field
from threading import Thread

from backend import Backend
from parley.contract.errors import ErrorCode, ParleyError
from parley.reply import NO_CHAT
from trouble import meaning

FRESH = 10.0
"""Seconds for which what was heard counts as news."""
BRIEF = 0.3
"""Seconds that a look waits for news: a page that waits draws nothing else, and takes no click."""

_MEANING = {
    ErrorCode.UPSTREAM_ERROR: NO_CHAT,
    ErrorCode.NOT_FOUND: NO_CHAT,
    ErrorCode.DEADLINE_EXCEEDED: "The service does not answer in time.",
}
"""What a failure means that is no answer's."""


@dataclass(frozen=True)
class Standing:
    """What was heard: ready or not, a few words on it, and the names of the models, if they could be asked."""

    ready: bool
    words: str
    models: list[str] = field(default_factory=list)


class Watch:
    """Remembers the last standing of one backend, and asks for news on a thread of its own."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._standing = Standing(False, "Asking")
        self._asking: Thread | None = None
        self._asked = time.monotonic() - FRESH

    def look(self) -> Standing:
        """The last standing heard; what is older than `FRESH` is asked for anew, and waited for briefly."""
        now = time.monotonic()
        if now - self._asked >= FRESH and (self._asking is None or not self._asking.is_alive()):
            self._asked = now
            self._asking = Thread(target=self._listen, daemon=True)
            self._asking.start()
        if self._asking is not None:
            self._asking.join(BRIEF)
        return self._standing

    def forget(self) -> None:
        """Makes the next look ask again: something has gone wrong since."""
        self._asked = time.monotonic() - FRESH

    def _listen(self) -> None:
        self._standing = self._ask()

    def _ask(self) -> Standing:
        try:
            health = self._backend.health()
            models = self._backend.models() if health.ready else self._standing.models
        except ParleyError as failure:
            return Standing(False, _MEANING.get(failure.code) or meaning(failure))
        words = "Ready" if health.ready else f"{health.state.capitalize()}. {health.detail}"
        return Standing(health.ready, words, models)
