"""uvicorn's server as the service wants it: asleep while there is nothing to do."""

import asyncio
from contextlib import suppress
from types import FrameType

import uvicorn

UVICORN_TICKS = 10
"""uvicorn checks this often a second whether to exit, and every tenth check refreshes the Date header. A process that
wakes on a busy machine finds its caches cold, and pays a tenth of a millisecond."""

IDLE_SECONDS = 75
"""How long an idle connection stays open, if no option says longer. AWS's load balancer keeps its own for 60: one that
is closed here first fails the request that is just on its way."""


class Server(uvicorn.Server):
    """A server that looks once a second whether it should end, and at once when a signal tells it to."""

    def __init__(self, config: uvicorn.Config) -> None:
        config.timeout_keep_alive = max(config.timeout_keep_alive, IDLE_SECONDS)
        super().__init__(config)
        self._told = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def main_loop(self) -> None:
        """Runs until the server should end."""
        self._loop = asyncio.get_running_loop()
        ticks = 0
        while not await self.on_tick(ticks):
            ticks += UVICORN_TICKS
            with suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), timeout=1.0)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal to end has come."""
        super().handle_exit(sig, frame)
        if self._loop:
            self._loop.call_soon_threadsafe(self._told.set)


def use_server() -> None:
    """Makes every uvicorn server of this process one of these: BentoML starts one, and takes none from us."""
    uvicorn.Server = Server  # type: ignore[misc]
