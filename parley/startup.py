"""How the processes of a service hang together: a failed start ends them all, and none outlives the one above it.

BentoML's supervisor starts a failing worker again for ever. So the worker tells the supervisor's process why it cannot
start, through a named pipe whose path it inherits, and a thread there ends it.
"""

import atexit
import ctypes
import os
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import NoReturn

PIPE = "PARLEY_INTERNAL_STARTUP_PIPE"
"""The variable with the path of the pipe."""

_PR_SET_PDEATHSIG = 1
"""From Linux's sys/prctl.h."""


def end_with_parent(number: signal.Signals) -> None:
    """Asks Linux to send this process a signal when the thread that started it ends.

    SIGKILL reaches a process that is stopped, too. Elsewhere this does nothing.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def one_line(error: Exception) -> str:
    """What an exception says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def fail(message: str) -> NoReturn:
    """Prints one line and exits with status 1."""
    print(f"parley: {message}", file=sys.stderr, flush=True)
    sys.exit(1)


def listen_for_failure() -> None:
    """In the supervisor's process, before any worker starts."""
    folder = Path(tempfile.mkdtemp(prefix="parley-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    pipe = folder / "startup"
    os.mkfifo(pipe, 0o600)
    os.environ[PIPE] = str(pipe)
    threading.Thread(target=_end_on_failure, args=(pipe,), daemon=True).start()


def tell_failure(message: str) -> NoReturn:
    """In a worker: ends the supervisor, or this process alone where there is none."""
    if pipe := os.environ.get(PIPE):
        Path(pipe).write_text(message, "utf-8")
    else:
        print(f"parley: {message}", file=sys.stderr, flush=True)
    os._exit(1)


def _end_on_failure(pipe: Path) -> None:
    message = pipe.read_text("utf-8")
    shutil.rmtree(pipe.parent, ignore_errors=True)
    print(f"parley: {message}", file=sys.stderr, flush=True)
    os._exit(1)
