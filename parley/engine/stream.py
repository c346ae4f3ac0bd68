"""Stream: the API's end of one answer. What was not read yet is kept as one `Delta`, however much it is."""

import asyncio
from collections.abc import AsyncIterator, Callable

from parley.engine.engine import Delta, Event


class Stream:
    """Events of one answer, for one reader. `ended` is true once a terminal event came in."""

    def __init__(self, stream_id: int) -> None:
        self.id = stream_id
        self.ended = False
        self._unread: list[Delta] = []
        self._last: Event | None = None
        self._nudged = False
        self._reader: asyncio.Future[None] | None = None

    def push(self, event: Event) -> None:
        """Takes an event in; whatever follows a terminal one is dropped."""
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

    async def next(self) -> Event:
        """The next event; waits for one. Never called again after a terminal event."""
        while not (self._unread or self._last or self._nudged):
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        self._nudged = False
        if self._unread:
            return self._take()
        return self._last or Delta(self.id, "", 0)

    def _take(self) -> Delta:
        unread, self._unread = self._unread, []
        if len(unread) == 1:
            return unread[0]
        text = "".join(delta.text for delta in unread)
        logprobs = [logprob for delta in unread for logprob in delta.logprobs]
        return Delta(self.id, text, sum(delta.tokens for delta in unread), logprobs)

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class Generated:
    """Events of one answer, which is asked for with the first of them and given up by `aclose`.

    No generator, as it is woken once a token.
    """

    def __init__(self, begin: Callable[[], Stream], close: Callable[[Stream], None]) -> None:
        self._begin = begin
        self._close = close
        self._stream: Stream | None = None
        self._over = False

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        """The next event; raises what keeps the answer from being begun."""
        if self._over:
            raise StopAsyncIteration
        if self._stream is None:
            self._stream = self._begin()
        event = await self._stream.next()
        if not isinstance(event, Delta):
            await self.aclose()
        return event

    async def aclose(self) -> None:
        """Cancels what still runs."""
        if self._stream is not None and not self._over:
            self._close(self._stream)
        self._over = True
