"""`make up`: both programs start, are announced, and go together."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from parley.up import Interruption, Program, service, stop, wait_until_ready
from tests.conftest import ROOT, clean_environment, command_line, descendants, free_port


def wait_for(log: Path, words: str, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 120
    while words not in (text := log.read_text("utf-8", "replace")):
        assert process.poll() is None, text
        assert time.monotonic() < deadline, text
        time.sleep(0.1)
    return text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_up_starts_both_says_where_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """Fails when the one command for new users does not end in a page and a service, or leaves a process behind: when
    it is told to stop, or when its terminal is closed."""
    port, ui_port, log = free_port(), free_port(), tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["make", "up", f"PORT={port}", f"UI_PORT={ui_port}"],
            cwd=ROOT,
            env=clean_environment({"http_proxy": "http://127.0.0.1:9"}),  # nobody is there
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # noqa: PLW1509 - under nohup it is ignored
        )
    text = wait_for(log, "Ctrl-C stops everything", process)
    assert f"http://127.0.0.1:{port}" in text
    assert f"http://127.0.0.1:{ui_port}" in text
    curl = next(line.strip() for line in text.splitlines() if line.strip().startswith("curl"))
    answer = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, check=True)
    assert "Bruce Wayne" in answer.stdout
    assert requests.get(f"http://127.0.0.1:{ui_port}", timeout=10).ok
    family = [process.pid, *descendants(process.pid)]
    os.killpg(process.pid, number)
    process.wait(60)
    deadline = time.monotonic() + 20
    while left := [pid for pid in family if command_line(pid)]:
        assert time.monotonic() < deadline, [command_line(pid) for pid in left]
        time.sleep(0.1)


class Slow(Program):
    """A program that is ready when it has been asked five times."""

    asked = 0

    def is_ready(self) -> bool:
        """Whether it answers by now."""
        self.asked += 1
        return self.asked > 5


def test_a_download_may_take_longer_than_any_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when a first start is stopped, and so never gets done, because its model is large or its line slow."""
    hours = itertools.count(0, 3600)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(hours)))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    program = Slow("service", 1, "PORT", [], "/", {})
    wait_until_ready([program])
    assert program.asked == 6


STUBBORN = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""


def test_who_asks_twice_does_not_wait(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Fails when a second Ctrl-C leaves a program running, and its port taken."""
    marks = [tmp_path / "service", tmp_path / "client"]
    programs = [Program(mark.name, 1, "", [sys.executable, "-c", STUBBORN, str(mark)], "/", {}) for mark in marks]
    for program in programs:
        program.start()
    while not all(mark.exists() for mark in marks):
        time.sleep(0.01)
    monkeypatch.setattr(Program, "end", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    stop(programs)
    assert [program.process.poll() for program in programs if program.process] == [-signal.SIGKILL] * 2


def test_a_stop_that_is_told_twice_at_once_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when make, which passes SIGTERM on, cuts answers short that had time to finish."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    interruption = Interruption()
    with pytest.raises(KeyboardInterrupt):
        interruption(signal.SIGTERM, None)
    interruption(signal.SIGTERM, None)
    now[0] += 2
    with pytest.raises(KeyboardInterrupt):
        interruption(signal.SIGINT, None)


def test_a_stop_is_told_to_all_before_any_is_waited_for() -> None:
    """Fails when a page that takes its time holds back the service's own stop."""
    quick = "import time; time.sleep(60)"
    programs = [Program(name, 1, "PORT", [sys.executable, "-c", quick], "/", {}) for name in ("service", "client")]
    for program in programs:
        program.start()
    stop(programs)
    assert [program.process.poll() for program in programs if program.process] == [-signal.SIGTERM] * 2


@pytest.mark.parametrize("what", ["service", "client"])
def test_a_taken_port_is_one_line(what: str) -> None:
    """Fails when a port in use gives a traceback, or a second server that fights for it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        option = "--port" if what == "service" else "--ui-port"
        done = subprocess.run(
            [sys.executable, "-m", "parley.up", what, option, str(port)],
            cwd=ROOT,
            env=clean_environment({}),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    variable = "PORT" if what == "service" else "UI_PORT"
    assert done.returncode == 1
    assert done.stderr == f"parley: port {port} is taken; choose another for the {what} with {variable}=...\n"


@pytest.mark.parametrize("port", ["99999", "-1"])
def test_a_port_that_is_none_is_one_line(port: str) -> None:
    """Fails when a mistyped port gives a traceback."""
    command = [sys.executable, "-m", "parley.up", "service", f"--port={port}"]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment({}), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"parley: port {port} cannot be used (")
    assert line.endswith("choose another for the service with PORT=...")


def test_a_stop_waits_as_long_as_answers_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when a longer PARLEY_DRAIN_GRACE is cut short by what started the service."""
    monkeypatch.setenv("PARLEY_DRAIN_GRACE", "120")
    assert service(1).grace == 120
    monkeypatch.setenv("PARLEY_DRAIN_GRACE", "long")
    assert service(1).grace == 0
