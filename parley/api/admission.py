"""Admission: who comes in, who is refused, and when a refused client should come back.

Pure: times are seconds of one monotonic clock, given by the caller. Rules that always hold: never more answers run than
there are places, but for one request that alone asks for more; never more wait than the queue holds; every `enter` that
did not raise is followed by one `leave`; nobody waits while there is room in the batch; who came first starts first.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from parley.contract.errors import ErrorCode, ParleyError

_SMOOTHING = 0.2
"""Weight of the newest answer's duration in the running mean."""

_FIRST_GUESS = 1.0
"""Seconds that an answer is taken to need before any was measured."""


@dataclass(eq=False)
class Place:
    """One request inside."""

    entered: float
    answers: int
    start: Callable[[], None]
    """Called once, when it gets its place in the batch; perhaps before `enter` returns."""
    started: float | None = None
    """When that was; None while it waits."""
    answered: bool = False
    """Whether it got any tokens. What the engine never took says nothing of how long answers take."""


class Admission:
    """A bounded door in front of the engine.

    Args:
        places: answers that the engine makes together.
        queue: answers that may wait for a place.
    """

    def __init__(self, places: int, queue: int) -> None:
        self._places = places
        self._queue = queue
        self._mean_seconds: float | None = None
        self._waiting: deque[Place] = deque()
        self.running = 0
        """Answers with a place in the batch."""
        self.waiting = 0
        """Answers inside that have no place in the batch yet: a number, as other threads read it."""

    def enter(
        self, answers: int, patience: float | None, now: float, jitter: float, start: Callable[[], None]
    ) -> Place:
        """Lets one request in.

        Args:
            answers: how many it asks for.
            patience: seconds that its client still waits, if that is known.
            now: the time.
            jitter: a random number in [0, 1), so that refused clients do not come back together.
            start: called when its answers may begin.

        Raises:
            ParleyError: `QUEUE_FULL`, with the seconds after which a retry is worth it: also for a queue that is
                not full, but longer than the client waits.
        """
        self.refuse_if_full(answers, jitter)
        if not self._has_room_for(answers):
            wait = self.expected_wait(answers)
            if patience is not None and self._mean_seconds is not None and wait > patience:
                raise _refused("The queue is longer than the time that the client gave.", wait - patience, jitter)
        place = Place(now, answers, start)
        self._waiting.append(place)
        self.waiting += answers
        self._fill(now)
        return place

    def refuse_if_full(self, answers: int, jitter: float) -> None:
        """Raises `QUEUE_FULL` when so many could not come in now; it changes nothing."""
        if not self._has_room_for(answers) and self.waiting + answers > self._queue:
            message = f"The queue is full: {self._queue} answers may wait."
            raise _refused(message, self.expected_wait(answers), jitter)

    def leave(self, place: Place, now: float) -> None:
        """Lets one request out; those who waited longest take what it leaves free."""
        if place.started is None:
            self._waiting.remove(place)
            self.waiting -= place.answers
        else:
            self.running -= place.answers
            if place.answered:
                self._measure(now - place.started)
        self._fill(now)

    def expected_wait(self, answers: int) -> float:
        """Seconds until this many more would have started, at the measured rate of `places` per mean answer."""
        mean = _FIRST_GUESS if self._mean_seconds is None else self._mean_seconds
        return (self.waiting + answers) * mean / self._places

    def _has_room_for(self, answers: int) -> bool:
        return not self._waiting and self._fits(answers)

    def _fits(self, answers: int) -> bool:
        return self.running == 0 or self.running + answers <= self._places

    def _fill(self, now: float) -> None:
        while self._waiting and self._fits(self._waiting[0].answers):
            place = self._waiting.popleft()
            place.started = now
            self.waiting -= place.answers
            self.running += place.answers
            place.start()

    def _measure(self, seconds: float) -> None:
        mean = seconds if self._mean_seconds is None else self._mean_seconds
        self._mean_seconds = mean + _SMOOTHING * (seconds - mean)


def _refused(why: str, wait: float, jitter: float) -> ParleyError:
    """Clients that are refused together are told to come back spread over the time in which the queue moves on."""
    return ParleyError(ErrorCode.QUEUE_FULL, f"{why} Retry after the time given.", retry_after=wait * (0.5 + jitter))
