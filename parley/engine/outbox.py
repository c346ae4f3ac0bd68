"""Outbox: events on their way from the engine process to the API, those of one answer not too close together."""

from parley.engine.engine import Delta, Event, merged

HOLD_SECONDS = 0.01
"""A hundred pieces of text a second are more than any screen shows, and each costs the API and its client a wake-up."""


class Outbox:
    """Holds tokens back for a moment, so that those of a fast model share a frame. Reads no clock.

    The first text of an answer and its end are never held.
    """

    def __init__(self) -> None:
        self._begun: dict[int, list[Delta]] = {}
        self._due: list[Event] = []
        self._last = 0.0

    def put(self, event: Event) -> None:
        """Takes in what a step produced for one answer."""
        held = self._begun.get(event.id)
        if not isinstance(event, Delta):
            self._due += [merged(held), event] if held else [event]
            self.forget(event.id)
        elif held is not None:
            held.append(event)
        else:
            self._due.append(event)
            if event.text:
                self._begun[event.id] = []

    def forget(self, answer: int) -> None:
        """Drops what is held of an answer that nobody waits for."""
        self._begun.pop(answer, None)

    def take(self, now: float) -> list[Event]:
        """What is to be sent now, in seconds of any clock: all that is held, once the last time is long enough ago."""
        if now - self._last < HOLD_SECONDS:
            due, self._due = self._due, []
            return due
        self._last = now
        return self.flush()

    def flush(self) -> list[Event]:
        """All that is held."""
        due, self._due = self._due, []
        for held in self._begun.values():
            if held:
                due.append(merged(held))
                held.clear()
        return due
