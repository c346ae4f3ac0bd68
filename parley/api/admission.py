"""Admission: who comes in, who is refused, and when a refused client should come back.

Pure: times are seconds of one monotonic clock, given by the caller. Rules that always hold: never more than `capacity`
inside; every `enter` that did not raise is followed by one `leave`.
"""

from parley.contract.errors import ErrorCode, ParleyError

_SMOOTHING = 0.2
"""Weight of the newest answer's duration in the running mean."""


class Admission:
    """A bounded door in front of the engine.

    Args:
        places: answers that the engine makes together.
        queue: requests that may wait for a place.
    """

    def __init__(self, places: int, queue: int) -> None:
        self._places = places
        self._queue = queue
        self._mean_seconds = 1.0
        self.inside = 0

    @property
    def capacity(self) -> int:
        """Most requests inside."""
        return self._places + self._queue

    @property
    def waiting(self) -> int:
        """Requests inside that have no place in the batch yet."""
        return max(0, self.inside - self._places)

    def enter(self, jitter: float) -> None:
        """Lets one request in.

        Args:
            jitter: a random number in [0, 1), so that refused clients do not come back together.

        Raises:
            ParleyError: `QUEUE_FULL`, with the seconds after which a place in the queue is likely.
        """
        if self.inside >= self.capacity:
            raise ParleyError(
                ErrorCode.QUEUE_FULL,
                f"The queue is full: {self._queue} requests wait already. Retry after the time given.",
                retry_after=self.seconds_until_place() * (1 + jitter / 2),
            )
        self.inside += 1

    def leave(self, seconds: float) -> None:
        """Lets one request out, which took `seconds` from its entry."""
        self.inside -= 1
        self._mean_seconds += _SMOOTHING * (seconds - self._mean_seconds)

    def seconds_until_place(self) -> float:
        """Expected time until somebody leaves, at the measured rate of `inside` answers per mean stay."""
        return max(0.05, self._mean_seconds / max(1, self.inside))
