"""EngineProcess: a runner in a child process, supervised.

Rules that always hold:
1. Every stream that `generate` opened ends in a terminal event, whatever happens to the process.
2. At most one engine process exists; a new one is started only after the old one is gone.
3. A process that is stopped, or whose step does not end, is killed; what dies is started again after a pause that
   doubles with each failure in a row. A model that cannot be loaded is not tried again, and one whose process ends
   while it loads only `LOADS_TRIED` times, unless it has been loaded before: what was possible once is worth another
   try.
"""

import asyncio
import itertools
import logging
import socket
import subprocess
import sys
import time

import msgspec
import psutil  # type: ignore[import-untyped]

from parley.contract.errors import ErrorCode, ParleyError
from parley.engine.engine import Content, Failure, Health, State
from parley.engine.launch import Launch
from parley.engine.reports import Reports
from parley.engine.runner import Job, ModelInfo, Sampling
from parley.engine.stream import Stream
from parley.engine.watch import Limits, Watch
from parley.engine.wire import Add, Beat, Cancel, Command, Events, LoadFailed, Ready, Report, frame
from parley.startup import one_line

log = logging.getLogger("parley.engine")

LOOK_SECONDS = 0.5
FAULTS_BEFORE_KILL = 2
NUDGE_LOOKS = 20
"""Every ten seconds each stream gets a `Delta` without tokens, so that its reader can show that it lives."""
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 15.0
LOADS_TRIED = 3
ENDED = "the engine process ended and is being started again"
DIED = "The engine process ended while it made this answer; it is being started again. Please retry."
STOPPED = "The service stopped before this answer was complete."


class EngineProcess:
    """An `Engine` whose runner lives in a process of its own.

    Args:
        launch: which runner and model to load.
        limits: how long loading, silence and a step may take, in seconds.
    """

    def __init__(self, launch: Launch, limits: Limits) -> None:
        self._launch = launch
        self._limits = limits
        self._state = State.LOADING
        self._detail = f"{launch.name} is being loaded"
        self._streams: dict[int, Stream] = {}
        self._ids = 0
        self._restarts = 0
        self._cache_usage: float | None = None
        self._writer: asyncio.WriteTransport | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        self._end = ""
        self.info: ModelInfo | None = None

    async def start(self) -> None:
        """Begins loading; returns before the model is ready."""
        self._supervisor = asyncio.create_task(self._supervise(), name="engine-supervisor")

    async def settled(self) -> Health:
        """Waits until the first loading has ended, well or not."""
        await self._settled.wait()
        return self.health()

    def generate(self, prompt: Content, sampling: Sampling) -> Stream:
        """Streams one answer; see `Engine.generate`. `prompt` holds token ids."""
        assert isinstance(prompt, list)
        return self._open(prompt, sampling)

    def health(self) -> Health:
        """How the engine is, now."""
        return Health(self._state, self._detail, len(self._streams), self._restarts, self._cache_usage)

    async def drain(self, grace: float) -> int:
        """Takes nothing new, lets running answers finish for `grace` seconds, then stops the process."""
        if self._state is not State.FAILED:
            self._enter(State.DRAINING, "the service is stopping")
        deadline = time.monotonic() + grace
        while self._streams and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        cut = len(self._streams)
        if self._supervisor:
            self._supervisor.cancel()
            await asyncio.wait({self._supervisor})
        return cut

    def _enter(self, state: State, detail: str) -> None:
        self._state, self._detail = state, detail
        if state in (State.READY, State.FAILED):
            self._settled.set()

    def _open(self, prompt: list[int], sampling: Sampling) -> Stream:
        if self._state is not State.READY or self._writer is None:
            code = ErrorCode.DRAINING if self._state is State.DRAINING else ErrorCode.ENGINE_UNAVAILABLE
            raise ParleyError(code, f"Not ready: {self._detail}.", retry_after=1.0)
        self._ids += 1
        stream = self._streams[self._ids] = Stream(self._ids, self._close)
        self._send(Add(Job(stream.id, prompt, sampling)))
        return stream

    def _close(self, stream: Stream) -> None:
        if self._streams.pop(stream.id, None) and not stream.ended:
            self._send(Cancel(stream.id))

    def _send(self, command: Command) -> None:
        if self._writer is not None:
            self._writer.write(frame(command))

    async def _supervise(self) -> None:
        """Runs one process after the other until a model cannot be loaded or the engine is drained."""
        try:
            await self._keep_running()
        except Exception as error:
            self._enter(State.FAILED, f"the engine process cannot be started: {error}")
            raise

    async def _keep_running(self) -> None:
        pause = FIRST_PAUSE
        while self._state is not State.FAILED:
            began = time.monotonic()
            await self._run_once_or_tell()
            if self._state in (State.FAILED, State.DRAINING):
                return
            if self.info is None and self._restarts + 1 == LOADS_TRIED:
                self._enter(State.FAILED, f"{self._launch.name} was not loaded in {LOADS_TRIED} tries: {self._end}")
                return
            pause = FIRST_PAUSE if time.monotonic() - began > 4 * LONGEST_PAUSE else min(2 * pause, LONGEST_PAUSE)
            self._restarts += 1
            self._enter(State.RESTARTING, ENDED)
            log.warning("the engine process ended; starting it again in %.2g s", pause)
            await asyncio.sleep(pause)

    async def _run_once_or_tell(self) -> None:
        """Runs one process; one that cannot even be started, for want of memory, does not end an engine that ran."""
        try:
            await self._run_once()
        except OSError as error:
            if self.info is None:
                raise
            log.error("the engine process cannot be started: %s", one_line(error))

    async def _run_once(self) -> None:
        """Starts a process and follows it to its end, which fails every open stream."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = self._spawn(theirs)
        self._end = ""
        watch = Watch(self._limits, time.monotonic())
        reports = Reports(lambda reports: self._receive_all(reports, watch))
        self._writer, _ = await asyncio.get_running_loop().create_unix_connection(lambda: reports, sock=ours)
        watcher = asyncio.create_task(self._kill_when_hung(watch, self._process))
        try:
            await reports.ended
        finally:
            watcher.cancel()
            self._writer.close()
            self._writer = None
            self._process.kill()
            if self._state is State.READY:
                self._enter(State.RESTARTING, ENDED)
            self._fail_open_streams()
            status = await asyncio.to_thread(self._process.wait)
            self._end = self._end or _how_it_ended(status)

    def _spawn(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        arguments = [str(theirs.fileno()), msgspec.json.encode(self._launch).decode()]
        return subprocess.Popen([sys.executable, "-m", "parley.engine.loop", *arguments], pass_fds=[theirs.fileno()])

    def _receive_all(self, reports: list[Report], watch: Watch) -> None:
        """Hands on what came. Tokens of several steps have waited already: those of one answer share a frame."""
        hand = Stream.offer if len(reports) == 1 else Stream.push
        for report in reports:
            if isinstance(report, Events):
                for event in report.events:
                    if stream := self._streams.get(event.id):
                        hand(stream, event)
            else:
                self._receive(report, watch)

    def _receive(self, report: Ready | LoadFailed | Beat, watch: Watch) -> None:
        if isinstance(report, Beat):
            watch.beat(report.steps, report.busy, time.monotonic())
            self._cache_usage = report.cache_usage
        elif isinstance(report, Ready):
            watch.loaded(time.monotonic())
            self.info = report.info
            if self._state is not State.DRAINING:
                self._enter(State.READY, f"{self._launch.name} on {report.info.engine}")
        elif isinstance(report, LoadFailed):
            self._load_failed(report.message)

    def _load_failed(self, message: str) -> None:
        if self.info is None:
            self._enter(State.FAILED, message)
        else:
            log.error("the engine could not load again: %s", message)

    async def _kill_when_hung(self, watch: Watch, process: subprocess.Popen[bytes]) -> None:
        """Looks at the watch until it finds a fault twice in a row: in between, beats that wait here are read."""
        faults = 0
        used = 0.0
        for look in itertools.count(1):
            await asyncio.sleep(LOOK_SECONDS)
            before, used = used, _processor_seconds(process.pid)
            if used > before:
                watch.works(time.monotonic())
            if look % NUDGE_LOOKS == 0:
                for stream in self._streams.values():
                    stream.nudge()
            fault = watch.fault(time.monotonic())
            faults = faults + 1 if fault else 0
            if faults == FAULTS_BEFORE_KILL:
                break
        self._end = fault
        log.error("the engine process is killed: %s", fault)
        if self._state is State.READY:
            self._enter(State.RESTARTING, fault)
        process.kill()

    def _fail_open_streams(self) -> None:
        stopping = self._state is State.DRAINING
        code, why = (ErrorCode.DRAINING, STOPPED) if stopping else (ErrorCode.ENGINE_UNAVAILABLE, DIED)
        for stream in self._streams.values():
            stream.push(Failure(stream.id, code, why))


def _how_it_ended(status: int) -> str:
    if status < 0:
        return f"signal {-status} ended the engine process; is there enough memory?"
    return f"the engine process ended with status {status}"


def _processor_seconds(pid: int) -> float:
    """Processor time that a process has used; 0 for one that has just ended."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)
