"""Stream: the API's end of one answer. What was not read yet is kept as one `Delta`, however much it is."""

import asyncio
from collections.abc import Callable

from parley.engine.engine import Delta, Event, Take, merged


class Stream:
    """Events of one answer, for one reader: an `EventSource`.

    Args:
        stream_id: the job's.
        close: called once, when nobody reads it any more.
    """

    def __init__(self, stream_id: int, close: Callable[["Stream"], None] = lambda stream: None) -> None:
        self.id = stream_id
        self.ended = False
        """Whether a terminal event came in."""
        self._loop = asyncio.get_running_loop()  # to ask for it is a system call, which is too much for a token
        self._close = close
        self._closed = False
        self._unread: list[Delta] = []
        self._last: Event | None = None
        self._nudged = False
        self._reader: asyncio.Future[None] | None = None
        self._take: Take | None = None

    def offer(self, event: Event) -> None:
        """Takes an event in, unless the reader waits, has left a `take` behind, and that takes it."""
        if not (isinstance(event, Delta) and event.tokens and self._is_taken(event)):
            self.push(event)

    def push(self, event: Event) -> None:
        """Takes an event in for the reader to fetch; whatever follows a terminal one is dropped."""
        if self.ended:
            return
        if not isinstance(event, Delta):
            self.ended, self._last = True, event
        elif event.tokens:
            self._unread.append(event)
        else:
            self._nudged = True
        self._wake()

    def nudge(self) -> None:
        """Lets `next` return, with a `Delta` without tokens if there is nothing else."""
        self._nudged = True
        self._wake()

    async def next(self, take: Take | None = None) -> Event:
        """The next event that was not taken; waits for one. The last one is terminal."""
        self._take = take
        while not (self._unread or self._last or self._nudged):
            self._reader = self._loop.create_future()
            await self._reader
        self._nudged = False
        if self._unread:
            return self._fetch()
        if self._last is None:
            return Delta(self.id, "", 0)
        await self.aclose()
        return self._last

    async def aclose(self) -> None:
        """Nobody reads it any more."""
        if not self._closed:
            self._closed = True
            self._close(self)

    def _is_taken(self, delta: Delta) -> bool:
        """Whether it was taken; an error of the reader's own is raised where it waits, and reaches nobody else."""
        if self._take is None or self._reader is None or self._reader.done():
            return False
        try:
            return self._take(delta)
        except Exception as error:  # noqa: BLE001 - passed on, whatever it is
            self._reader.set_exception(error)
            return True

    def _fetch(self) -> Delta:
        unread, self._unread = self._unread, []
        return merged(unread)

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
