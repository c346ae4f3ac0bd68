"""A stop in order: on SIGTERM or SIGINT the worker first drains, while it still answers `/readyz` and refusals."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from types import FrameType

from uvicorn import Server

LAST_SECONDS = 0.5
"""What is left to connections when the grace is over: enough to send the last events to whoever takes them."""

Drain = Callable[[float], Awaitable[object]]
"""Takes the seconds that answers get to finish."""


def drain_on_signals(drain: Drain, grace: float) -> None:
    """Puts `drain` before what the server does on SIGTERM and SIGINT; a second signal skips the wait.

    The server itself waits for open connections without bound: for a reader that has stalled, for a body that never
    comes. What the drain has left of `grace` is theirs. Call this on the running event loop, after the server has set
    its own handlers.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        _chain(loop, number, drain, grace)


def _chain(loop: asyncio.AbstractEventLoop, number: signal.Signals, drain: Drain, grace: float) -> None:
    server = signal.getsignal(number)
    tasks: list[asyncio.Task[None]] = []

    async def drain_then_stop() -> None:
        ends = loop.time() + grace
        try:
            await drain(grace)
        finally:
            loop.call_later(max(LAST_SECONDS, ends - loop.time()), _cut, server)
            signal.signal(number, server)
            os.kill(os.getpid(), number)

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if tasks:
            loop.call_soon_threadsafe(tasks[0].cancel)
        else:
            loop.call_soon_threadsafe(lambda: tasks.append(loop.create_task(drain_then_stop())))

    signal.signal(number, on_signal)


def _cut(handler: object) -> None:
    """Ends all connections of the server whose signal handler this is; requests end as if their clients had left."""
    server = getattr(handler, "__self__", None)
    assert isinstance(server, Server)
    for connection in list(server.server_state.connections):
        connection.transport.abort()
