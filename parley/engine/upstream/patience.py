"""Patience: how long an upstream may take, and how often it is asked. Pure: no clock, no chance."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """Times in seconds."""

    connect: float = 5.0
    first_byte: float = 120.0
    """From a request to the first byte of its answer: the time in the upstream's queue and that of the prompt."""
    silence: float = 120.0
    """Between two pieces of an answer."""
    total: float = 600.0
    """A whole answer, all tries included."""
    tries: int = 3
    first_pause: float = 0.25
    longest_pause: float = 5.0
    """Longest wait between two tries; who asks for a longer one is not asked again, and our client is told instead."""

    def pause(self, tried: int, retry_after: float | None, jitter: float) -> float | None:
        """How long to wait before the next try; None when there is none.

        Args:
            tried: how often it was tried, at least 1.
            retry_after: what the upstream asked for, if it did.
            jitter: a random number in [0, 1), so that many requests do not come back together.
        """
        if tried >= self.tries:
            return None
        if retry_after is not None:
            return retry_after if retry_after <= self.longest_pause else None
        doubled: float = self.first_pause * 2 ** (tried - 1)
        return min(doubled, self.longest_pause) * (1 - jitter / 2)
