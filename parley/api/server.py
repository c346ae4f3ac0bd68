"""uvicorn's server as the service wants it: asleep while there is nothing to do."""

import asyncio
from contextlib import suppress
from types import FrameType

import uvicorn

UVICORN_TICKS = 10
"""So many times a second uvicorn itself looks whether it should end, and at every so many-th time it sets the date of
its responses. A process that wakes on a busy machine finds its caches cold, and pays a tenth of a millisecond."""


class Server(uvicorn.Server):
    """A server that looks once a second whether it should end, and at once when a signal tells it to."""

    def __init__(self, config: uvicorn.Config) -> None:
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
