"""A stop in order: on SIGTERM or SIGINT the worker first drains, while it still answers `/readyz` and refusals."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from types import FrameType

from uvicorn import Server

LAST_SECONDS = 0.5
"""What is left to connections when the grace is over: enough to send the last events to whoever takes them."""

SAME_STOP_SECONDS = 1.0
"""A stop that is told to a whole group of processes comes twice: from outside, and from BentoML's supervisor."""

_NUMBERS = (signal.SIGTERM, signal.SIGINT)

Drain = Callable[[float], Awaitable[object]]
"""Takes the seconds that answers get to finish."""


def drain_on_signals(drain: Drain, grace: float) -> None:
    """Puts `drain` before what the server does on SIGTERM and SIGINT; a second signal ends the wait.

    The server itself waits for open connections without bound: for a reader that has stalled, for a body that never
    comes. What the drain has left of `grace` is theirs. Call this on the running event loop, after the server has set
    its own handlers.
    """
    stop = _Stop(asyncio.get_running_loop(), drain, grace)
    for number in _NUMBERS:
        signal.signal(number, stop.on_signal)


class _Stop:
    """The one stop of this process, however often it is told."""

    def __init__(self, loop: asyncio.AbstractEventLoop, drain: Drain, grace: float) -> None:
        self._loop = loop
        self._drain = drain
        self._grace = grace
        self._handlers = {number: signal.getsignal(number) for number in _NUMBERS}
        self._told: float | None = None
        self._task: asyncio.Task[None] | None = None

    def on_signal(self, number: int, _: FrameType | None) -> None:
        """A signal to stop has come."""
        if self._told is None:
            self._told = time.monotonic()
            self._loop.call_soon_threadsafe(self._begin, signal.Signals(number))
        elif time.monotonic() - self._told > SAME_STOP_SECONDS:
            self._loop.call_soon_threadsafe(self._hurry)

    def _begin(self, number: signal.Signals) -> None:
        self._task = self._loop.create_task(self._run(number))

    def _hurry(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self, number: signal.Signals) -> None:
        ends = self._loop.time() + self._grace
        try:
            await self._drain(self._grace)
        except asyncio.CancelledError:
            ends = self._loop.time()
            await self._drain(0)
        finally:
            self._loop.call_later(max(LAST_SECONDS, ends - self._loop.time()), _cut, self._handlers[number])
            for each, handler in self._handlers.items():
                signal.signal(each, handler)
            os.kill(os.getpid(), number)


def _cut(handler: object) -> None:
    """Ends all connections of the server whose signal handler this is; requests end as if their clients had left."""
    server = getattr(handler, "__self__", None)
    assert isinstance(server, Server)
    for connection in list(server.server_state.connections):
        connection.transport.abort()
