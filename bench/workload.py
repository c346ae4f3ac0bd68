"""Workload: what the users of one trial ask, and when. Pure: the same seed gives the same questions at the same times.

Closed loop: each of `users` asks again as soon as it has its answer. Open loop: conversations begin at random times
(a Poisson process of `rate` a second), whether or not earlier ones have been answered; waits count from these times, so
that a slow server cannot make its own load lighter.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from bench import lexicon


@dataclass(frozen=True)
class Workload:
    """One trial.

    Args:
        name: how the table calls it.
        users: most conversations at once in the closed loop.
        window: seconds that are measured.
        shapes: words of each user turn, for one conversation after the other, in a cycle.
        answer_tokens: tokens of each answer.
        rate: conversations begun a second; None for the closed loop.
        seed: chooses the words and the times.
        opening: put before the first words of each conversation.
    """

    name: str
    users: int
    window: float
    shapes: tuple[tuple[int, ...], ...]
    answer_tokens: int
    rate: float | None = None
    seed: int = 0
    opening: str = ""

    def turns(self, conversation: int) -> list[str]:
        """What the user says in one conversation, turn by turn."""
        source = random.Random(f"{self.seed}/{self.name}/{conversation}")
        first, *others = [lexicon.text(source, words) for words in self.shapes[conversation % len(self.shapes)]]
        return [self.opening + first, *others]

    def of_user(self, user: int) -> Iterator[int]:
        """Numbers of the conversations of one user; no two users share one."""
        number = user
        while True:
            yield number
            number += self.users

    def arrivals(self) -> list[float]:
        """When conversations begin in the open loop, in seconds from the start."""
        if self.rate is None:
            raise ValueError(f"{self.name} is a closed loop: its conversations have no times of their own")
        source = random.Random(f"{self.seed}/{self.name}/arrivals")
        times: list[float] = []
        now = source.expovariate(self.rate)
        while now < self.window:
            times.append(now)
            now += source.expovariate(self.rate)
        return times
