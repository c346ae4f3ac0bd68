"""Gauge: CPU and memory of a server's processes, read from the operating system."""

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import psutil  # type: ignore[import-untyped]

IDLE_SHARE = 0.15
"""Of one core: below it a server counts as idle."""
LOOK_SECONDS = 0.25


class Cpu(NamedTuple):
    """Seconds of CPU so far."""

    server: float
    """Of all processes of the server."""
    api: float
    """Of those that are not the engine's."""
    machine: float
    """Of everything that runs on the machine."""

    def since(self, earlier: "Cpu") -> "Cpu":
        """What was used between two readings."""
        return Cpu(*(now - before for now, before in zip(self, earlier, strict=True)))


class Gauge:
    """The process tree of one server. Processes that end while it looks are left out.

    Args:
        pid: its root.
        engine_mark: words in the command line of the engine's own processes; empty when it has none.
    """

    def __init__(self, pid: int, engine_mark: str = "") -> None:
        self._root = psutil.Process(pid)
        self._mark = engine_mark

    def cpu(self) -> Cpu:
        """Readings of now."""
        total = api = 0.0
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                used = used_by(process)
                total += used
                api += 0.0 if self._is_engine(process) else used
        return Cpu(total, api, machine())

    def resident(self) -> int:
        """Bytes in memory, shared pages counted once (PSS)."""
        total = 0
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
        return total

    def settles(self, patience: float) -> bool:
        """Waits until the server does nothing any more; False when it still works after `patience` seconds."""
        deadline = time.monotonic() + patience
        before = self.cpu().server
        while time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
            now = self.cpu().server
            if now - before < IDLE_SHARE * LOOK_SECONDS:
                return True
            before = now
        return False

    def _processes(self) -> Iterator[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            yield from [self._root, *self._root.children(recursive=True)]

    def _is_engine(self, process: psutil.Process) -> bool:
        return bool(self._mark) and self._mark in " ".join(process.cmdline())


def used_by(process: psutil.Process) -> float:
    """Seconds of CPU of a process: on Linux by its own clock, as `/proc` counts in hundredths.

    Its number is that of `clock_getcpuclockid` in glibc. Raises `psutil.NoSuchProcess` once the process has ended.
    """
    if sys.platform != "linux":
        times = process.cpu_times()
        return float(times.user + times.system)
    try:
        return time.clock_gettime(~process.pid << 3 | 2)
    except OSError as error:
        raise psutil.NoSuchProcess(process.pid) from error


def machine() -> float:
    """Seconds of CPU that everything on this machine has used."""
    times = psutil.cpu_times()
    idle: float = times.idle + getattr(times, "iowait", 0.0)
    guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted in user and nice as well
    return float(sum(times)) - idle - guest
