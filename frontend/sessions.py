"""Sessions by the name of the tab that shows them, so that a reload goes on where it was.

Streamlit forgets a page's state when the page is reloaded; an answer under way goes on, and nobody would see it. No
I/O, no Streamlit. What was said is in this process's memory alone and ends with it.
"""

import time
from collections import OrderedDict
from threading import Lock

from session import Session

KEPT_SECONDS = 12 * 3600.0
MOST = 500
"""Sessions kept; those that were not shown for longest are forgotten first."""


class Sessions:
    """All sessions of this process; pages' threads share it."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[float, Session]] = OrderedDict()
        self._lock = Lock()

    def keep(self, name: str, session: Session) -> None:
        """Notes that a tab shows a session now."""
        now = time.monotonic()
        with self._lock:
            self._kept[name] = now, session
            self._kept.move_to_end(name)
            while len(self._kept) > MOST or now - next(iter(self._kept.values()))[0] > KEPT_SECONDS:
                self._kept.popitem(last=False)

    def find(self, name: str) -> Session | None:
        """The session that a tab of this name has shown, if it is still kept."""
        with self._lock:
            _, session = self._kept.get(name, (0.0, None))
        return session

    def forget(self, name: str) -> None:
        """Drops a name that no tab has."""
        with self._lock:
            self._kept.pop(name, None)
