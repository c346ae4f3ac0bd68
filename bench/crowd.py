"""Crowd: the load generator in a process of its own, so that what it measures does not wait for it."""

import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

from bench.contestant import HEADSTART, PATIENCE
from bench.load import Load, Target
from bench.record import Record
from bench.workload import Workload


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
        TimeoutError: when the crowd does not begin or does not hand in its records.
    """
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    crowd = context.Process(target=_work, args=(theirs, target, workload), daemon=True)
    crowd.start()
    theirs.close()
    try:
        _receive(pipe)
        start = time.monotonic() + HEADSTART
        pipe.send(start)
        _sleep_until(start)
        at_start()
        _sleep_until(start + workload.window)
        at_end()
        return _receive(pipe)
    finally:
        crowd.kill()
        crowd.join()
        pipe.close()


def _receive(pipe: Connection) -> Watched:
    if not pipe.poll(PATIENCE):
        raise TimeoutError("the load generator does not answer")
    watched: Watched = pipe.recv()
    return watched


def _work(pipe: Connection, target: Target, workload: Workload) -> None:
    os.setsid()  # as the servers: Linux divides a busy machine among sessions (autogroup)
    load = Load(target, workload)
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
