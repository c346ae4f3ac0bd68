"""Steps: commands of other programs, one after the other. What they say goes to a log; people see what goes on."""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from parley.engine.model import ModelError

NEWS_SECONDS = 10.0


class Steps:
    """Runs steps, each told on standard error, with its time when it takes longer.

    Args:
        name: what they are for, as the messages name it.
        log: a file for everything that the commands print; begun anew.
        lock: an open file that stays locked while a command runs, should this process end before it.
    """

    def __init__(self, name: str, log: Path, lock: IO[bytes]) -> None:
        self._name = name
        self._log = log
        self._lock = lock
        log.write_bytes(b"")

    def run(self, what: str, environment: Mapping[str, str], *ways: Sequence[str]) -> None:
        """Does one step in the first of several ways that works.

        Args:
            what: what goes on, for people.
            environment: the commands' variables.
            ways: commands, of which one is enough.

        Raises:
            ModelError: when none works: one line, with the last line that the last command said.
        """
        print(f"parley convert: {self._name}: {what}", file=sys.stderr, flush=True)
        if not any(self._succeeds(what, environment, command) for command in ways):
            said = [line.strip() for line in self._log.read_text("utf-8", "replace").splitlines() if line.strip()]
            cause = said[-1] if said else "the command said nothing"
            raise ModelError(f"{self._name}: {what} failed: {cause} (all of it is in {self._log})")

    def _succeeds(self, what: str, environment: Mapping[str, str], command: Sequence[str]) -> bool:
        began = time.monotonic()
        with self._log.open("ab") as log:
            keep = (self._lock.fileno(),)
            with subprocess.Popen(command, env=environment, stdout=log, stderr=log, pass_fds=keep) as child:
                while True:
                    try:
                        return child.wait(NEWS_SECONDS) == 0
                    except subprocess.TimeoutExpired:
                        seconds = time.monotonic() - began
                        print(f"parley convert: {what}: {seconds:.0f} s", file=sys.stderr, flush=True)
