"""Crowd: the load generator, several processes of `Load`, so that Python's lock does not slow down what it measures."""

import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from bench.load import Load, Target
from bench.record import Record
from bench.workload import Workload

USERS_A_PROCESS = 8
HEADSTART = 0.1
"""Seconds between the word to start and the start, so that all processes start together."""
PATIENCE = 60.0
"""Seconds that a process may take to begin, or to hand in its records."""


@dataclass(frozen=True)
class Watched:
    """What the crowd saw, and what it took to see it, in seconds of CPU."""

    records: list[Record]
    cpu: float


def drive(target: Target, workload: Workload, at_start: Callable[[], None], at_end: Callable[[], None]) -> Watched:
    """Runs one workload against one server.

    Args:
        target: the server.
        workload: the questions.
        at_start: called when the window begins.
        at_end: called when it ends.

    Raises:
        TimeoutError: when a process of the crowd does not begin or does not hand in its records.
    """
    count = -(-workload.users // USERS_A_PROCESS)
    crowd = [_Member(target, workload, first, count) for first in range(count)]
    try:
        for member in crowd:
            member.receive()
        start = time.monotonic() + HEADSTART
        for member in crowd:
            member.pipe.send(start)
        _sleep_until(start)
        at_start()
        _sleep_until(start + workload.window)
        at_end()
        parts = [member.receive() for member in crowd]
    finally:
        for member in crowd:
            member.end()
    return Watched([record for part in parts for record in part.records], sum(part.cpu for part in parts))


class _Member:
    """One process of the crowd and the pipe to it."""

    def __init__(self, target: Target, workload: Workload, first: int, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, target, workload, first, count)
        self._process: BaseProcess = context.Process(target=_work, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def receive(self) -> Watched:
        if not self.pipe.poll(PATIENCE):
            raise TimeoutError("a process of the load generator does not answer")
        watched: Watched = self.pipe.recv()
        return watched

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _work(pipe: Connection, target: Target, workload: Workload, first: int, count: int) -> None:
    os.setsid()  # as the servers: Linux divides a busy machine among sessions (autogroup)
    load = Load(target, workload, first, count)
    pipe.send(Watched([], 0.0))
    start: float = pipe.recv()
    before = _cpu()
    records = load.run(start)
    pipe.send(Watched(records, _cpu() - before))
    pipe.recv()  # stays until it is killed: dropping connections earlier would disturb the last reading


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
