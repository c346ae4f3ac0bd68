"""The events of one request's answers: bounded in time, numbered, and brought together into one stream."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

from msgspec.structs import replace

from parley.api.observed import Observed
from parley.contract.errors import ErrorCode, ParleyError
from parley.engine.engine import Delta, Event, EventSource, Failure, Finish, Generated, Take

TOO_LONG = "The answer had not begun within this service's time limit for answers; it was given up."


class Timed:
    """One answer's events, numbered by its index, cut off at a given event-loop time.

    At that moment a text that has begun ends with the reason `length`, and one that has not ends with a failure;
    closing it cancels the engine's work on it. One timer serves all waits, as `asyncio.timeout` costs twelve
    microseconds.
    """

    def __init__(self, events: EventSource, index: int, ends: float, observed: Observed) -> None:
        self._events = events
        self._index = index
        self.observed = observed
        self._rang = False
        self._reader: asyncio.Task[object] | None = None
        self._cancelled: asyncio.Task[object] | None = None
        self._loop = asyncio.get_running_loop()  # to ask for it is a system call, which is too much for a token
        self._timer = self._loop.call_at(ends, self._ring)

    async def next(self, take: Take | None = None) -> Event:
        """The next event that was not taken; raises what keeps the answer from being begun."""
        self._reader = asyncio.current_task(self._loop)
        try:
            event = self._cut() if self._rang else await self._events.next(take and self._seen_by(take))
        except asyncio.CancelledError:
            if not self._cancelled or self._cancelled.uncancel():
                raise
            event = self._cut()
        except ParleyError:
            self.observed.refused = True
            raise
        finally:
            self._reader = None
        self.observed.see(event)
        return replace(event, id=self._index)

    async def aclose(self) -> None:
        """Nobody reads it any more."""
        self._timer.cancel()
        await self._events.aclose()

    def _seen_by(self, take: Take) -> Take:
        def taken(delta: Delta) -> bool:
            if not take(Delta(self._index, delta.text, delta.tokens, delta.logprobs)):
                return False
            self.observed.see(delta)
            return True

        return taken

    def _ring(self) -> None:
        """The moment has come: whoever waits is woken, unless somebody else has cancelled it already."""
        self._rang = True
        if self._reader is not None and not self._reader.cancelling():
            self._cancelled = self._reader
            self._reader.cancel()

    def _cut(self) -> Event:
        if tokens := self.observed.tokens:
            return Finish(self._index, "", "length", self.observed.prompt_tokens, tokens, None)
        return Failure(self._index, ErrorCode.DEADLINE_EXCEEDED, TOO_LONG)


@asynccontextmanager
async def one_stream(answers: Sequence[EventSource]) -> AsyncIterator[EventSource]:
    """The events of all answers in one stream."""
    if len(answers) == 1:
        yield answers[0]
    else:
        async with aclosing(Generated(interleaved(answers))) as events:
            yield events


async def interleaved(answers: Sequence[EventSource]) -> AsyncGenerator[Event, None]:
    """The events of several answers as they come; it ends when all have ended, or with the first that fails."""
    queue: asyncio.Queue[Event] = asyncio.Queue(len(answers))
    tasks = [asyncio.create_task(_pump(answer, index, queue)) for index, answer in enumerate(answers)]
    left = len(answers)
    try:
        while left:
            event = await queue.get()
            yield event
            if isinstance(event, Failure):
                return
            left -= isinstance(event, Finish)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(answer: EventSource, index: int, queue: asyncio.Queue[Event]) -> None:
    try:
        while isinstance(event := await answer.next(), Delta):
            await queue.put(event)
        await queue.put(event)
    except ParleyError as error:
        await queue.put(Failure.of(index, error))
