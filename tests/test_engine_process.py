"""The engine process, for real: started, used, cancelled, killed, frozen, drained."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from parley.contract.errors import ErrorCode, ParleyError
from parley.engine.engine import Delta, Event, Failure, Finish, State
from parley.engine.launch import Launch
from parley.engine.process import EngineProcess
from parley.engine.runner import Placement, Sampling
from parley.engine.watch import Limits
from tests.conftest import POCKET
from tests.events import all_events

ECHO = Launch("echo", "test", "echo", None, Placement())


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def pid(engine: EngineProcess) -> int:
    assert engine._process is not None
    return engine._process.pid


@pytest.fixture
async def engine() -> AsyncIterator[EngineProcess]:
    engine = EngineProcess(ECHO, Limits(silence=1.0, step=5.0))
    await engine.start()
    await engine.settled()
    yield engine
    await engine.drain(0)


async def answer(engine: EngineProcess, text: str, sampling: Sampling | None = None) -> list[Event]:
    return await all_events(engine.generate(list(text.encode()), sampling or Sampling()))


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if not isinstance(event, Failure))


async def test_an_answer_ends_in_one_terminal_event(engine: EngineProcess) -> None:
    """Fails when a stream has no end, two ends, or loses text on its way out of the process."""
    events = await answer(engine, "to be or not to be")
    assert text_of(events) == "to be or not to be"
    assert [isinstance(event, Delta) for event in events] == [True] * (len(events) - 1) + [False]
    assert events[-1] == Finish(events[-1].id, events[-1].text, "stop", 18, 18, 0)  # type: ignore[union-attr]


async def test_a_stop_string_ends_the_answer_and_frees_its_place(engine: EngineProcess) -> None:
    """Fails when the engine goes on after a stop string, or the string itself gets out."""
    events = await answer(engine, "one two three four", Sampling(stop=("three",)))
    assert text_of(events) == "one two "
    assert engine.health().running == 0


async def test_a_closed_generator_cancels_its_job(engine: EngineProcess) -> None:
    """Fails when a client that left keeps its place in the batch."""
    generator = engine.generate(list(b"slow " + b"word " * 1000), Sampling())
    await generator.next()
    assert engine.health().running == 1
    await generator.aclose()
    assert engine.health().running == 0
    assert text_of(await answer(engine, "next")) == "next"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_r04_r16_killed_or_frozen_it_fails_its_streams_and_comes_back(engine: EngineProcess, number: int) -> None:
    """Fails when clients of a dead or stopped engine wait for ever, or the engine stays away (R4, R16)."""
    tasks = [asyncio.create_task(answer(engine, "slow " + "word " * 400)) for _ in range(8)]
    states = []
    tasks[0].add_done_callback(lambda _: states.append(engine.health().state))
    await until(lambda: engine.health().running == 8)
    await asyncio.sleep(0.2)
    first = pid(engine)
    os.kill(first, number)
    for events in await asyncio.wait_for(asyncio.gather(*tasks), 10):
        assert isinstance(events[-1], Failure)
        assert events[-1].code is ErrorCode.ENGINE_UNAVAILABLE
    assert states == [State.RESTARTING]  # or a client that comes back at once is told that it is ready, and refused
    await until(lambda: engine.health().state is State.READY and pid(engine) != first)
    assert engine.health().restarts == 1
    assert text_of(await answer(engine, "again")) == "again"


HOLDS_THE_INTERPRETER = """
import socket, sys, time
from parley.engine.loop import Link
from parley.engine.runner import ModelInfo
from parley.engine.wire import Beat, Ready
link = Link(socket.socket(fileno=int(sys.argv[1])))
link.send(Ready(ModelInfo("fake", "test", "cpu", "none", 10, [])))
link.send(Beat(0, False, None))
ends = time.monotonic() + 3
while time.monotonic() < ends:  # as a `step` that lets no other thread of Python's run
    pass
link.send(Beat(1, False, 0.5))
time.sleep(60)
"""
"""A fake of OpenVINO with a model too large for the tests: nothing is heard of it during a step."""


async def test_a_long_step_that_holds_the_interpreter_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when every prompt that takes more than a few seconds to read gets the engine killed, again and again."""

    def spawn(_: EngineProcess, theirs: socket.socket) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", HOLDS_THE_INTERPRETER, str(theirs.fileno())]
        return subprocess.Popen(command, pass_fds=[theirs.fileno()])

    monkeypatch.setattr(EngineProcess, "_spawn", spawn)
    engine = EngineProcess(ECHO, Limits(silence=0.3, step=60.0))
    await engine.start()
    await engine.settled()
    await until(lambda: engine.health().cache_usage == 0.5 or engine.health().restarts > 0, seconds=60)
    assert (engine.health().state, engine.health().restarts) == (State.READY, 0)
    await engine.drain(0)


async def test_while_it_restarts_newcomers_are_told_to_come_back(engine: EngineProcess) -> None:
    """Fails when a request during a restart hangs instead of getting a 503 with a time to retry."""
    os.kill(pid(engine), signal.SIGKILL)
    await until(lambda: engine.health().state is State.RESTARTING)
    with pytest.raises(ParleyError) as caught:
        await answer(engine, "hello")
    assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE
    assert caught.value.retry_after is not None


async def test_r15_drain_lets_running_answers_finish_and_refuses_new_ones() -> None:
    """Fails when a stop cuts answers that had time to finish, or takes new work while stopping (R15)."""
    engine = EngineProcess(ECHO, Limits())
    await engine.start()
    await engine.settled()
    running = asyncio.create_task(answer(engine, "slow " + "word " * 20))
    await until(lambda: engine.health().running == 1)
    draining = asyncio.create_task(engine.drain(10))
    await asyncio.sleep(0.1)
    with pytest.raises(ParleyError) as caught:
        await answer(engine, "late")
    assert caught.value.code is ErrorCode.DRAINING
    assert isinstance((await running)[-1], Finish)
    assert await draining == 0
    assert engine._process is not None
    assert engine._process.poll() is not None


async def test_r01_r15_what_is_cut_by_the_end_of_the_grace_gets_an_error() -> None:
    """Fails when an answer that outlasts the grace ends like a complete one (R1, R15)."""
    engine = EngineProcess(ECHO, Limits())
    await engine.start()
    await engine.settled()
    running = asyncio.create_task(answer(engine, "slow " + "word " * 400))
    await until(lambda: engine.health().running == 1)
    assert await engine.drain(0.2) == 1
    end = (await running)[-1]
    assert isinstance(end, Failure)
    assert (end.code, end.message) == (ErrorCode.DRAINING, "The service stopped before this answer was complete.")


async def test_r17_a_model_that_cannot_be_loaded_is_told_and_not_tried_again() -> None:
    """Fails when a broken model is loaded over and over, or its reason is lost (R17)."""
    engine = EngineProcess(Launch("openvino", "test", "nowhere", "/nonexistent", Placement()), Limits())
    await engine.start()
    health = await asyncio.wait_for(engine.settled(), 30)
    assert health.state is State.FAILED
    assert "nowhere could not be loaded: FileNotFoundError" in health.detail
    await engine.drain(0)


async def test_r17_a_model_whose_loading_kills_the_process_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Fails when a model that is too large for the memory is loaded, killed and loaded again for ever (R17)."""
    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killed))
    engine = EngineProcess(ECHO, Limits())
    await engine.start()
    health = await asyncio.wait_for(engine.settled(), 30)
    assert health.state is State.FAILED
    assert health.detail == (
        "echo was not loaded in 3 tries: signal 9 ended the engine process; is there enough memory?"
    )
    await engine.drain(0)


async def test_r15_a_second_stop_leaves_no_stream_without_its_end() -> None:
    """Fails when a stop that is told again while the process ends cuts streams without a terminal event (R15)."""
    engine = EngineProcess(ECHO, Limits())
    await engine.start()
    await engine.settled()
    running = asyncio.create_task(answer(engine, "slow " + "word " * 400))
    await until(lambda: engine.health().running == 1)
    stopping = asyncio.create_task(engine.drain(0.1))
    await until(lambda: engine._writer is None)
    stopping.cancel()
    assert isinstance((await asyncio.wait_for(running, 10))[-1], Failure)


async def test_r04_a_model_that_was_loaded_once_is_tried_until_it_loads_again(tmp_path: Path) -> None:
    """Fails when a full disk or a moment without memory, just at a restart, ends the service for good (R4)."""
    folder = shutil.copytree(POCKET, tmp_path / "pocket")
    launch = Launch("openvino", "test", "pocket", str(folder), Placement(), str(folder))
    engine = EngineProcess(launch, Limits())
    await engine.start()
    assert (await asyncio.wait_for(engine.settled(), 60)).state is State.READY
    (folder / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    os.kill(pid(engine), signal.SIGKILL)
    await until(lambda: engine.health().restarts == 2, 60)
    assert engine.health().state is State.RESTARTING
    (tmp_path / "tokenizer.json").rename(folder / "tokenizer.json")
    await until(lambda: engine.health().state is State.READY, 60)
    await engine.drain(0)


async def test_r04_a_process_that_cannot_be_started_is_tried_again(
    engine: EngineProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails when the want of memory that killed the engine also ends its supervisor (R4)."""
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/nonexistent/python")
        os.kill(pid(engine), signal.SIGKILL)
        await until(lambda: engine.health().restarts == 2)
        assert engine.health().state is State.RESTARTING
    await until(lambda: engine.health().state is State.READY)


async def test_no_process_outlives_a_worker_that_was_killed() -> None:
    """Fails when a killed worker leaves an orphan that holds memory, or a frozen one that holds it for ever."""
    program = (
        "import asyncio, sys\n"
        "from tests.test_engine_process import ECHO\n"
        "from parley.engine.process import EngineProcess\n"
        "from parley.engine.watch import Limits\n"
        "async def main():\n"
        "    engine = EngineProcess(ECHO, Limits())\n"
        "    await engine.start(); await engine.settled()\n"
        "    print(engine._process.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    worker = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert worker.stdout is not None
    child = int(await asyncio.wait_for(worker.stdout.readline(), 30))
    os.kill(child, signal.SIGSTOP)
    worker.kill()
    await worker.wait()
    await until(lambda: not os.path.exists(f"/proc/{child}") or _zombie(child))


def _zombie(process_id: int) -> bool:
    try:
        with open(f"/proc/{process_id}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True
