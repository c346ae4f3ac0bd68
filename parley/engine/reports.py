"""Reports: the worker's end of the socket to the engine process."""

import asyncio
from collections.abc import Callable

from parley.engine.wire import Frames, Report


class Reports(asyncio.Protocol):
    """Hands reports on as they come, without a task in between. `ended` is done when the process has gone.

    Args:
        receive: called with what a wake-up brought: several reports if more came than were read in time.
    """

    def __init__(self, receive: Callable[[list[Report]], None]) -> None:
        self._receive = receive
        self._frames: Frames[Report] = Frames(Report)
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        """Some of the stream, in a wake-up of its own; what is raised here ends the connection."""
        self._receive(self._frames.feed(data))

    def connection_lost(self, error: Exception | None) -> None:
        """The end of the stream, and what was wrong with it."""
        if self.ended.done():
            return
        if error is None or isinstance(error, OSError):
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)
