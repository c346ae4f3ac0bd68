"""The engine process: a loop around `runner.step()`.

Started by `EngineProcess` with one end of a socket pair. It ends when that socket does, so it never outlives the
worker, and it ignores the signals that a terminal or a supervisor sends to the whole group: the worker decides when to
stop.
"""

import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback

import msgspec

from parley.contract.errors import ErrorCode
from parley.crash import report_without_messages, without_message
from parley.engine.answer import Answer
from parley.engine.engine import Delta, Event, Failure
from parley.engine.launch import Launch, load_runner
from parley.engine.model import ModelError
from parley.engine.outbox import Outbox
from parley.engine.runner import CacheReporter, Job, Runner, Step
from parley.engine.wire import Add, Beat, Command, Events, Frames, LoadFailed, Ready, Report, frame
from parley.startup import end_with_parent, one_line

BEAT_SECONDS = 0.5


class Link:
    """The process's end of the socket: commands come in on a thread, reports go out whole from any thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sending = threading.Lock()
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, report: Report) -> None:
        """Sends one report; a worker that is gone ends the process."""
        with self._sending:
            try:
                self._sock.sendall(frame(report))
            except OSError:
                os._exit(0)

    def commands(self, wait: bool) -> list[Command]:
        """All commands that have arrived; waits for the first one if asked to."""
        taken = [self._inbox.get()] if wait else []
        while not self._inbox.empty():
            taken.append(self._inbox.get())
        return taken

    def _read(self) -> None:
        frames: Frames[Command] = Frames(Command)
        while data := self._sock.recv(65536):
            for command in frames.feed(data):
                self._inbox.put(command)
        os._exit(0)


class Loop:
    """Adds, cancels, steps, reports; the only thread that touches the runner."""

    def __init__(self, runner: Runner, link: Link) -> None:
        self._runner = runner
        self._link = link
        self._answers: dict[int, Answer] = {}
        self._outbox = Outbox()
        self.steps = 0

    @property
    def busy(self) -> bool:
        """Whether an answer is under way."""
        return bool(self._answers)

    @property
    def cache_usage(self) -> float | None:
        """The part of the KV cache in use; None where the runner does not tell. Without jobs nothing is."""
        if not isinstance(self._runner, CacheReporter):
            return None
        return self._runner.cache_usage if self.busy else 0.0

    def run(self) -> None:
        """Runs until the process ends."""
        while True:
            if commands := self._link.commands(wait=not self.busy):
                for command in commands:
                    self._apply(command)
                self._send(self._outbox.flush())  # the next step may read a long prompt
            self._step()
            self._send(self._outbox.take(time.monotonic()))

    def _send(self, events: list[Event]) -> None:
        if events:
            self._link.send(Events(events))

    def _apply(self, command: Command) -> None:
        if isinstance(command, Add):
            self._add(command.job)
        elif self._answers.pop(command.id, None):
            self._outbox.forget(command.id)
            self._runner.cancel(command.id)

    def _add(self, job: Job) -> None:
        """Adds a job, or tells that the runner does not take it."""
        try:
            self._runner.add(job)
        except Exception as error:  # noqa: BLE001 - libraries raise what they like for a request that they do not take; the others' answers must not pay for it
            message = f"the engine refused the request ({type(error).__name__})"
            self._outbox.put(Failure(job.id, ErrorCode.ENGINE_ERROR, message))
        else:
            self._answers[job.id] = Answer(job, self._runner.detokenizer())

    def _step(self) -> None:
        for step in self._runner.step():
            answer = self._answers.get(step.id)
            if answer is None:
                continue
            event = _advanced(answer, step)
            if not isinstance(event, Delta):
                del self._answers[step.id]
                if step.finish is None and step.error is None:
                    self._runner.cancel(step.id)
            self._outbox.put(event)
        self.steps += 1


def _advanced(answer: Answer, step: Step) -> Event:
    """The event of one step; an answer that cannot be turned into text fails, and no other does."""
    try:
        return answer.advance(step)
    except Exception as error:  # noqa: BLE001 - a tokenizer's decoder raises what it likes; the other answers must not pay for it
        print(f"parley: an answer ended on:\n{without_message(error)}", file=sys.stderr, flush=True)
        message = f"the answer could not be turned into text ({type(error).__name__})"
        return Failure(step.id, ErrorCode.ENGINE_ERROR, message)


def _beat(link: Link, loop: Loop) -> None:
    while True:
        link.send(Beat(loop.steps, loop.busy, loop.cache_usage))
        time.sleep(BEAT_SECONDS)


def _load(link: Link, launch: Launch) -> Runner:
    try:
        return load_runner(launch)
    except ModelError as error:
        link.send(LoadFailed(str(error)))
    except Exception as error:  # noqa: BLE001 - the boundary to foreign libraries, whose errors have no common class
        traceback.print_exc()
        link.send(LoadFailed(f"{launch.name} could not be loaded: {type(error).__name__}: {one_line(error)[:300]}"))
    raise SystemExit(1)


def main() -> None:
    """Runs the engine process: `python -m parley.engine.loop FD LAUNCH_JSON`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent(signal.SIGKILL)
    link = Link(socket.socket(fileno=int(sys.argv[1])))
    launch = msgspec.json.decode(sys.argv[2], type=Launch)
    runner = _load(link, launch)
    report_without_messages()
    loop = Loop(runner, link)
    link.send(Ready(runner.info))
    threading.Thread(target=_beat, args=(link, loop), daemon=True).start()
    loop.run()


if __name__ == "__main__":
    main()
