"""InProcess: the contestant that is an engine without a server, in a process of its own."""

import multiprocessing
import os
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from bench.contestant import HEADSTART, PATIENCE, READY_SECONDS, NotStarted
from bench.exports import openvino
from bench.gauge import Gauge
from bench.record import Record
from bench.summary import Outcome, Usage
from bench.workload import Workload


@dataclass
class InProcess:
    """The OpenVINO engine alone; see `bench.raw_engine`."""

    name: str
    folder: Path
    dtype: str
    _process: BaseProcess | None = None
    _pipe: Connection | None = None

    def start(self) -> float:
        """Loads the engine; returns the seconds until it had made its first token.

        Raises:
            NotStarted: when the model is not exported or cannot be loaded.
        """
        openvino(self.folder, self.dtype)
        began = time.monotonic()
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self.folder, self.dtype), daemon=True)
        self._process.start()
        theirs.close()
        self._receive(READY_SECONDS)
        return time.monotonic() - began

    def measure(self, workload: Workload) -> Outcome:
        """Runs one workload; the engine is its own load generator."""
        assert self._pipe
        gauge = self._gauge()
        start = time.monotonic() + HEADSTART
        self._pipe.send((workload, start))
        before = gauge.cpu()
        time.sleep(max(0.0, start + workload.window - time.monotonic()))
        used = gauge.cpu().since(before)
        records = self._receive(PATIENCE)
        usage = Usage(used.server, api_cpu=None, load_cpu=0.0, machine_cpu=used.machine, resident=gauge.resident())
        return Outcome(records, workload.window, usage)

    def settle(self) -> None:
        """Nothing: the engine drops what is left at the end of each workload."""

    def stop(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = None

    def _gauge(self) -> Gauge:
        assert self._process
        assert self._process.pid
        return Gauge(self._process.pid)

    def _receive(self, patience: float) -> list[Record]:
        assert self._pipe is not None
        try:
            if not self._pipe.poll(patience):
                raise NotStarted(f"{self.name} is silent")
            received: list[Record] = self._pipe.recv()
        except EOFError:
            raise NotStarted(f"{self.name} ended; its last lines are above") from None
        return received


def _serve(pipe: Connection, folder: Path, dtype: str) -> None:
    from bench.raw_engine import RawEngine

    os.setsid()  # as the servers: Linux divides a busy machine among sessions (autogroup), so all must have their own
    engine = RawEngine(folder, dtype)
    engine.warm_up()
    pipe.send([])
    while True:
        pipe.send(engine.run(*pipe.recv()))
