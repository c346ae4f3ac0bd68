"""The events of one request's answers: bounded in time, numbered, and brought together into one stream."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

from msgspec.structs import replace

from parley.contract.errors import ErrorCode, ParleyError
from parley.engine.engine import Delta, Event, EventSource, Failure, Finish

T = TypeVar("T")

TOO_LONG = "The answer had not begun within this service's time limit for answers; it was given up."


class Alarm:
    """A moment of the event loop's time after which nothing is waited for.

    One timer serves all the waits of an answer; `asyncio.timeout` would make one for each token, at twelve
    microseconds each.
    """

    def __init__(self, at: float) -> None:
        self._rang = False
        self._waiter: asyncio.Task[object] | None = None
        self._timer = asyncio.get_running_loop().call_at(at, self._ring)

    async def wait_for(self, awaitable: Awaitable[T]) -> T:
        """What the awaitable gives; raises `TimeoutError`, and cancels it, when the moment has come."""
        task = asyncio.current_task()
        assert task is not None
        if self._rang:
            raise TimeoutError
        cancelled_before = task.cancelling()
        self._waiter = task
        try:
            return await awaitable
        except asyncio.CancelledError:
            if self._rang and task.uncancel() <= cancelled_before:
                raise TimeoutError from None
            raise
        finally:
            self._waiter = None

    def stop(self) -> None:
        """Takes the timer back."""
        self._timer.cancel()

    def _ring(self) -> None:
        self._rang = True
        if self._waiter is not None:
            self._waiter.cancel()


class Timed:
    """One answer's events, their `id` replaced by its index, until a moment of the event loop's time.

    At that moment a text that has begun ends with the reason `length`, and one that has not ends with a failure;
    closing it cancels the engine's work on it. No generator, as it is woken once a token.
    """

    def __init__(self, events: EventSource, index: int, ends: float, prompt_tokens: int) -> None:
        self._events = events
        self._index = index
        self._prompt_tokens = prompt_tokens
        self._tokens = 0
        self._alarm = Alarm(ends)
        self._over = False

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        """The next event; raises what keeps the answer from being begun."""
        if self._over:
            raise StopAsyncIteration
        try:
            event = await self._alarm.wait_for(self._events.__anext__())
        except TimeoutError:
            event = self._cut()
        if isinstance(event, Delta):
            self._tokens += event.tokens
        else:
            self._over = True
        return replace(event, id=self._index)

    async def aclose(self) -> None:
        """Nobody reads it any more."""
        self._over = True
        self._alarm.stop()
        await self._events.aclose()

    def _cut(self) -> Event:
        if self._tokens:
            return Finish(self._index, "", "length", self._prompt_tokens, self._tokens, 0)
        return Failure(self._index, ErrorCode.DEADLINE_EXCEEDED, TOO_LONG)


@asynccontextmanager
async def one_stream(answers: Sequence[AsyncIterator[Event]]) -> AsyncIterator[AsyncIterator[Event]]:
    """The events of all answers in one stream."""
    if len(answers) == 1:
        yield answers[0]
    else:
        async with aclosing(merged(answers)) as events:
            yield events


async def merged(answers: Sequence[AsyncIterator[Event]]) -> AsyncGenerator[Event, None]:
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


async def _pump(answer: AsyncIterator[Event], index: int, queue: asyncio.Queue[Event]) -> None:
    try:
        async for event in answer:
            await queue.put(event)
    except ParleyError as error:
        await queue.put(Failure(index, error.code, error.message))
