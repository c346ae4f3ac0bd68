"""Contestant: what takes part in the benchmark, a server or an engine alone."""

from typing import Protocol

from bench.summary import Outcome
from bench.workload import Workload

HEADSTART = 0.1
"""Seconds between the word to start and the start."""
PATIENCE = 60.0
"""Seconds that another process may take to begin, or to hand in its records."""
READY_SECONDS = 300.0
"""Longest start."""


class NotStarted(Exception):
    """A contestant cannot take part; the message says why."""


class Contestant(Protocol):
    """Something that answers."""

    name: str

    def start(self) -> float:
        """Starts it; returns the seconds until its first answer. Raises `NotStarted`."""

    def measure(self, workload: Workload) -> Outcome:
        """Runs one workload against it."""

    def settle(self) -> None:
        """Makes it idle again."""

    def stop(self) -> None:
        """Ends it, if it runs."""
