"""Real services for the tests: each is `bentoml serve` in processes of its own, on a free port."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

# Tests send Ctrl-C to programs that they start. A shell that runs us in the background has it ignored, and they would
# inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same goes for a proxy: nothing that the tests start is asked through one.
_LOCAL = ",".join(filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1", "localhost")))
os.environ["no_proxy"] = os.environ["NO_PROXY"] = _LOCAL

ROOT = Path(__file__).resolve().parents[1]
POCKET = ROOT / "models" / "pocket"
READY_SECONDS = 90

NO_SKIPS = bool(os.environ.pop("PARLEY_NO_SKIPS", ""))
"""Whether a skip is a failure. Taken out of the environment, where the service would refuse it as no setting."""


def needs(tool: str) -> None:
    """Skips a test whose tool is not installed; with PARLEY_NO_SKIPS set, fails it."""
    if shutil.which(tool) is None:
        missing(f"{tool} is not installed")


def missing(reason: str) -> None:
    """Skips a test that cannot run here; with PARLEY_NO_SKIPS set, fails it."""
    if NO_SKIPS:
        pytest.fail(reason)
    pytest.skip(reason)


def free_port() -> int:
    """A port that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment(env: Mapping[str, str]) -> dict[str, str]:
    """This environment without anybody's PARLEY_* settings, with `env` on top."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PARLEY_")}
    return {**kept, "BENTOML_DO_NOT_TRACK": "True", "HF_HUB_OFFLINE": "1", **env}


@dataclass
class Served:
    """A running service."""

    url: str
    process: subprocess.Popen[bytes]
    log_path: Path

    def log(self) -> str:
        """Everything that it has written so far."""
        return self.log_path.read_text("utf-8", "replace")

    def readyz(self) -> int:
        """The status of `/readyz`; 0 when nothing answers."""
        try:
            return requests.get(f"{self.url}/readyz", timeout=5).status_code
        except requests.RequestException:
            return 0

    def wait_until_ready(self) -> None:
        """Returns when it can answer; fails the test with its log when it ends or takes too long."""
        deadline = time.monotonic() + READY_SECONDS
        while self.readyz() != 200:
            assert self.process.poll() is None, f"the service ended:\n{self.log()}"
            assert time.monotonic() < deadline, f"not ready in {READY_SECONDS} s:\n{self.log()}"
            time.sleep(0.1)

    def engine_pid(self) -> int:
        """The process id of its engine process."""
        return next(pid for pid in descendants(self.process.pid) if b"parley.engine.loop" in command_line(pid))


def descendants(pid: int) -> list[int]:
    """All processes below one, from /proc."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            children += [int(child) for child in task.read_text().split()]
    return children + [below for child in children for below in descendants(child)]


def command_line(pid: int) -> bytes:
    """A process's command line; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@contextmanager
def serve(
    env: Mapping[str, str], ready: bool = True, cwd: Path = ROOT, target: str = "service:Parley"
) -> Iterator[Served]:
    """A service with these settings; stopped, with all its processes, when the context ends."""
    port = free_port()
    descriptor, name = tempfile.mkstemp(prefix="parley-", suffix=".log")
    log_path = Path(name)
    command = [sys.executable, "-m", "bentoml", "serve", target, "--host", "127.0.0.1", "--port", str(port)]
    with os.fdopen(descriptor, "wb") as log:
        process = subprocess.Popen(
            command, cwd=cwd, env=clean_environment(env), stdout=log, stderr=log, start_new_session=True
        )
    served = Served(f"http://127.0.0.1:{port}", process, log_path)
    try:
        if ready:
            served.wait_until_ready()
        yield served
    finally:
        stop(process)
        log_path.unlink()


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL to the whole group."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="session")
def echo_service() -> Iterator[Served]:
    """The service on the model-free engine."""
    with serve({"PARLEY_ENGINE": "echo"}) as served:
        yield served


@pytest.fixture(scope="session")
def service() -> Iterator[Served]:
    """The service on the embedded model."""
    with serve({}) as served:
        yield served
