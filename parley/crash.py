"""Exceptions in a log: their types and places, never their messages, which may quote what a user wrote.

A tokenizer that refuses a text, a model that refuses a prompt, a validator: each puts its input into its message.
"""

import sys
import threading
import traceback
from types import TracebackType


def without_message(error: BaseException) -> str:
    """An exception as lines for a log: the exceptions behind it first, each with its frames and its type's name."""
    behind = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    lines = [without_message(behind), "which led to:"] if behind else []
    lines += [line.rstrip() for line in traceback.format_tb(error.__traceback__)]
    lines.append(type(error).__qualname__)
    if isinstance(error, BaseExceptionGroup):
        lines += [without_message(inner) for inner in error.exceptions]
    return "\n".join(lines)


def report_without_messages() -> None:
    """From now on this process reports what nobody caught, on any thread, on standard error and without messages."""
    sys.excepthook = _on_uncaught
    threading.excepthook = _on_thread
    sys.unraisablehook = _on_unraisable


def _on_uncaught(_kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
    print(f"parley: this process ends on an exception:\n{without_message(error)}", file=sys.stderr, flush=True)


def _on_thread(crash: threading.ExceptHookArgs) -> None:
    if crash.exc_value:
        print(f"parley: a thread ended on:\n{without_message(crash.exc_value)}", file=sys.stderr, flush=True)


def _on_unraisable(crash: "sys.UnraisableHookArgs") -> None:
    if crash.exc_value:
        print(f"parley: nobody could catch:\n{without_message(crash.exc_value)}", file=sys.stderr, flush=True)
