"""A failed start ends the whole service, with one line and a non-zero status.

BentoML's supervisor starts a failing worker again for ever. So the worker tells the supervisor's process why it cannot
start, through a named pipe whose path it inherits, and a thread there ends it.
"""

import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import NoReturn

_PIPE = "PARLEY_INTERNAL_STARTUP_PIPE"


def fail(message: str) -> NoReturn:
    """Prints one line and exits with status 1."""
    print(f"parley: {message}", file=sys.stderr, flush=True)
    sys.exit(1)


def listen_for_failure() -> None:
    """In the supervisor's process, before any worker starts."""
    pipe = Path(tempfile.mkdtemp(prefix="parley-")) / "startup"
    os.mkfifo(pipe, 0o600)
    os.environ[_PIPE] = str(pipe)
    threading.Thread(target=_end_on_failure, args=(pipe,), daemon=True).start()


def tell_failure(message: str) -> NoReturn:
    """In a worker: ends the supervisor, or this process alone where there is none."""
    if pipe := os.environ.get(_PIPE):
        Path(pipe).write_text(message, "utf-8")
    else:
        print(f"parley: {message}", file=sys.stderr, flush=True)
    os._exit(1)


def _end_on_failure(pipe: Path) -> None:
    message = pipe.read_text("utf-8")
    print(f"parley: {message}", file=sys.stderr, flush=True)
    os._exit(1)
