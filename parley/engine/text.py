"""Stop strings: found across token borders, never let through in part."""


class StopMatcher:
    """Passes text on, holds back what may be the start of a stop string, and ends before the one that matches.

    Rules: the stop string that is complete first matches, and of those that end together the longest, however the text
    is cut into pieces; text that was let through never changes; no part of the stop string that matched is let through;
    after a match nothing is.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._longest = max((len(stop) for stop in stops), default=0)
        self._held = ""
        self.matched = False

    def push(self, text: str) -> str:
        """The text that is safe to send now."""
        if self.matched:
            return ""
        if not self._stops:
            return text
        self._held += text
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.matched = True
            _, begins = min(found)
            return self._held[:begins]
        return self._release(len(self._held) - self._partial())

    def flush(self) -> str:
        """What was held back, once the answer has ended without a match."""
        return "" if self.matched else self._release(len(self._held))

    def _release(self, size: int) -> str:
        safe, self._held = self._held[:size], self._held[size:]
        return safe

    def _partial(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        sizes = range(min(self._longest - 1, len(self._held)), 0, -1)
        return next((size for size in sizes if self._begins_stop(self._held[-size:])), 0)

    def _begins_stop(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self._stops)
