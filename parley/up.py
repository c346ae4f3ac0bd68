"""Starts the service, the Streamlit client or both on this machine, and stops them together: `python -m parley.up`."""

import argparse
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import requests

from parley.settings import Settings, SettingsError

ROOT = Path(__file__).resolve().parents[1]
HOST = "127.0.0.1"
STOP_SECONDS = 10.0
"""How long a program may take to stop, beside what it lets running answers have."""
SAME_STOP_SECONDS = 1.0
"""One stop may be told twice: make passes SIGTERM on, and both shell and kernel tell of a closed terminal."""


class NotStarted(Exception):
    """A program could not be started; the message is one line."""


@dataclass
class Program:
    """One program, and how to see that it is ready."""

    name: str
    port: int
    variable: str
    command: list[str]
    ready_path: str
    environment: dict[str, str]
    grace: float = 0.0
    """Seconds for which it lets running answers go on when it is asked to stop."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{HOST}:{self.port}"

    def start(self) -> None:
        """Starts it in a process group of its own, so that a Ctrl-C reaches it through us alone."""
        environment = {**os.environ, **self.environment}
        self.process = subprocess.Popen(self.command, cwd=ROOT, env=environment, start_new_session=True)

    def is_ready(self) -> bool:
        """Whether it answers.

        Raises:
            NotStarted: when it has ended instead.
        """
        assert self.process is not None
        if (status := self.process.poll()) is not None:
            raise NotStarted(f"the {self.name} ended with status {status}; its last lines are above")
        try:
            return requests.get(self.url + self.ready_path, timeout=2).ok
        except requests.RequestException:
            return False

    def ask_to_stop(self) -> None:
        """Asks all of it to stop."""
        self._signal(signal.SIGTERM)

    def end(self) -> None:
        """Waits until it has stopped, and ends it when it does not."""
        if self.process is None:
            return
        try:
            self.process.wait(self.grace + STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Ends it at once."""
        self._signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, number)


def service(port: int) -> Program:
    """The Bento service."""
    command = [sys.executable, "-m", "bentoml", "serve", "service:Parley", "--host", HOST, "--port", str(port)]
    environment = {"BENTOML_DO_NOT_TRACK": "True"}
    return Program("service", port, "PORT", command, "/readyz", environment, _drain_grace())


def _drain_grace() -> float:
    try:
        return Settings.from_env(os.environ).drain_grace
    except SettingsError:  # which the service tells, and ends
        return 0.0


def client(port: int, service_url: str) -> Program:
    """The Streamlit client."""
    options = {"port": port, "address": HOST, "headless": "true"}
    flags = [f"--server.{key}={value}" for key, value in options.items()]
    command = [sys.executable, "-m", "streamlit", "run", "frontend/app.py", *flags, "--browser.gatherUsageStats=false"]
    return Program("client", port, "UI_PORT", command, "/_stcore/health", {"PARLEY_URL": service_url})


def refuse_taken_port(program: Program) -> None:
    """Raises `NotStarted` when another program listens on the port, or it is none of ours."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, program.port))
        except (OSError, OverflowError) as error:
            taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            why = "is taken" if taken else f"cannot be used ({error})"
            message = f"port {program.port} {why}; choose another for the {program.name} with {program.variable}=..."
            raise NotStarted(message) from None


def wait_until_ready(programs: list[Program]) -> None:
    """Returns when all answer, however long a download takes; raises `NotStarted` when one ends instead."""
    while False in [program.is_ready() for program in programs]:
        time.sleep(0.2)


def announce(programs: list[Program]) -> None:
    """Prints where everything is, and one request to try."""
    print()
    for program in programs:
        print(f"  {program.name:8} {program.url}")
    if programs[0].name == "service":
        print(
            f"\n  curl -s {programs[0].url}/chat -H 'Content-Type: application/json' "
            """-d '{"user_input": "Who is Batman?"}'"""
        )
    print("\n  Ctrl-C stops everything.\n", flush=True)


def run(programs: list[Program]) -> None:
    """Runs the programs until one ends or a signal comes."""
    try:
        for program in programs:
            refuse_taken_port(program)
        for program in programs:
            program.start()
        wait_until_ready(programs)
        announce(programs)
        while True:
            time.sleep(0.5)
            for program in programs:
                if program.process and (status := program.process.poll()) is not None:
                    raise NotStarted(f"the {program.name} ended with status {status}")
    finally:
        stop(programs)


def stop(programs: list[Program]) -> None:
    """Asks all to stop and waits for them; who asks again does not want to wait."""
    try:
        for program in reversed(programs):
            program.ask_to_stop()
        for program in programs:
            program.end()
    except KeyboardInterrupt:
        for program in programs:
            program.kill()


class Interruption:
    """Makes a `KeyboardInterrupt` of the signals that ask for a stop, one of those that are told together."""

    def __init__(self) -> None:
        self._told = -SAME_STOP_SECONDS

    def __call__(self, _number: int, _frame: object) -> None:
        """A signal has come."""
        now = time.monotonic()
        if now - self._told >= SAME_STOP_SECONDS:
            self._told = now
            raise KeyboardInterrupt


def _ask_this_machine_itself() -> None:
    """Neither we nor what we start asks a proxy for this machine's own addresses."""
    hosts = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    if hosts == "*":
        return
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, (hosts, HOST, "localhost")))


def main() -> None:
    """Entry point; exits with 1 and one line when something cannot be started."""
    parser = argparse.ArgumentParser(prog="python -m parley.up", description=__doc__)
    parser.add_argument("what", choices=["all", "service", "client"])
    parser.add_argument("--port", type=int, default=3000, help="the service's port")
    parser.add_argument("--ui-port", type=int, default=8501, help="the client's port")
    arguments = parser.parse_args()
    _ask_this_machine_itself()
    backend = service(arguments.port)
    alone = arguments.what == "client"
    page = client(arguments.ui_port, os.environ.get("PARLEY_URL", backend.url) if alone else backend.url)
    chosen = {"all": [backend, page], "service": [backend], "client": [page]}[arguments.what]
    interruption = Interruption()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, interruption)
    try:
        run(chosen)
    except NotStarted as error:
        sys.exit(f"parley: {error}")
    except KeyboardInterrupt:
        print("\nstopped", flush=True)


if __name__ == "__main__":
    main()
