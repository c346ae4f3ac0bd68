"""Server: a contestant that runs as a program of its own and is asked over HTTP."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.contestant import READY_SECONDS, NotStarted
from bench.crowd import drive
from bench.gauge import Cpu, Gauge
from bench.load import Target
from bench.summary import Outcome, Usage
from bench.workload import Workload
from parley.client import Client
from parley.contract.chat import Message
from parley.contract.errors import ParleyError

STOP_SECONDS = 15.0
SETTLE_SECONDS = 8.0


@dataclass
class Server:
    """A program and where it listens.

    Args:
        name: how the table calls it.
        command: starts it, in the foreground.
        target: its address and how to ask it.
        log: where its output goes.
        environment: added to ours.
        engine_mark: words in the command line of the processes that are its engine, if they are not the API's.
    """

    name: str
    command: Sequence[str]
    target: Target
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    engine_mark: str = ""
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Starts it; returns the seconds until it had answered its first request, of one token.

        Raises:
            NotStarted: when it ends or does not answer.
        """
        began = time.monotonic()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        while time.monotonic() - began < READY_SECONDS:
            self._check_alive()
            if self._answers():
                return time.monotonic() - began
            time.sleep(0.05)
        self.stop()
        raise NotStarted(f"it gave no answer within {READY_SECONDS:g} s; see {self.log}")

    def measure(self, workload: Workload) -> Outcome:
        """Runs one workload against it."""
        gauge = self._gauge()
        readings: list[Cpu] = []

        def read() -> None:
            readings.append(gauge.cpu())

        watched = drive(self.target, workload, read, read)
        self._check_alive()
        used = readings[1].since(readings[0])
        usage = Usage(
            server_cpu=used.server,
            api_cpu=used.api if self.engine_mark else None,
            load_cpu=watched.cpu,
            machine_cpu=used.machine,
            resident=gauge.resident(),
        )
        return Outcome(watched.records, workload.window, usage)

    def idle_share(self, seconds: float) -> float:
        """CPU that its API processes take while nobody asks, of one core."""
        gauge = self._gauge()
        before = gauge.cpu().api
        time.sleep(seconds)
        return (gauge.cpu().api - before) / seconds

    def settle(self) -> None:
        """Waits until it has dropped what the last trial left; one that works on is started again."""
        if not self._gauge().settles(SETTLE_SECONDS):
            self.stop()
            self.start()

    def stop(self) -> None:
        """Ends it and every process of its group."""
        if self._process is None:
            return
        _signal_group(self._process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        _signal_group(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def _check_alive(self) -> None:
        if self._process is not None and (status := self._process.poll()) is not None:
            raise NotStarted(f"it ended with status {status}; see {self.log}")

    def _gauge(self) -> Gauge:
        if self._process is None:
            raise NotStarted(f"{self.name} does not run")
        return Gauge(self._process.pid, self.engine_mark)

    def _answers(self) -> bool:
        """Whether a first piece of an answer comes back, or the end of one without text, as one token of beams has."""
        with Client(self.target.url, timeout=READY_SECONDS, model=self.target.model) as client:
            try:
                with client.stream([Message("user", "baba")], max_tokens=1, **self.target.sampling) as answer:
                    next(iter(answer), None)
                    return True
            except ParleyError:
                return False


def _signal_group(leader: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, number)
