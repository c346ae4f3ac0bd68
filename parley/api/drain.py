"""A stop in order: on SIGTERM or SIGINT the worker first drains, while it still answers `/readyz` and refusals."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from types import FrameType


def drain_on_signals(drain: Callable[[], Awaitable[object]]) -> None:
    """Puts `drain` before what the server does on SIGTERM and SIGINT; a second signal skips the wait.

    Call it on the running event loop, after the server has set its own handlers.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        _chain(loop, number, drain)


def _chain(loop: asyncio.AbstractEventLoop, number: signal.Signals, drain: Callable[[], Awaitable[object]]) -> None:
    server = signal.getsignal(number)
    tasks: list[asyncio.Task[None]] = []

    async def drain_then_stop() -> None:
        try:
            await drain()
        finally:
            signal.signal(number, server)
            os.kill(os.getpid(), number)

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if tasks:
            loop.call_soon_threadsafe(tasks[0].cancel)
        else:
            loop.call_soon_threadsafe(lambda: tasks.append(loop.create_task(drain_then_stop())))

    signal.signal(number, on_signal)
