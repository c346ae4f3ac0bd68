"""Streamed responses: how they begin, however long their answers are in coming, and that nothing of them is left."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from typing import NamedTuple, Protocol

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from parley.api.deadline import kept
from parley.api.disconnect import unless_disconnected
from parley.api.protocol import WRITE, Write, refuse
from parley.api.sse import KEEP_ALIVE, KEEP_ALIVE_SECONDS, comment, error_frame
from parley.api.terms import dropped
from parley.contract.errors import ParleyError
from parley.engine.engine import Delta, Event, EventSource, Failure
from parley.prompt import Prompt
from parley.telemetry.record import current

HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class Begun(NamedTuple):
    """Answers whose first event is there."""

    prompt: Prompt
    events: EventSource
    first: Event


class Frames(Protocol):
    """The text of a stream, made of the events of its answers."""

    over: bool
    """Whether the last of it, a terminal event, was given."""

    def head(self) -> str:
        """What comes before the first event."""

    def take(self, event: Event) -> str:
        """What an event adds; nothing, if it adds nothing. The same `Delta` twice gives the same."""


MakeFrames = Callable[[Prompt], Frames]

Answers = AbstractAsyncContextManager[tuple[Prompt, EventSource]]
"""What `Chat.answer` gives."""


class Opening:
    """Answers on their way to their first event. Whoever makes one closes it, which cancels what still runs.

    Args:
        answers: not entered yet.
        deadline: the moment, in the event loop's time, until which their first event is waited for.
    """

    def __init__(self, answers: Answers, deadline: float | None) -> None:
        self._answers = answers
        self._deadline = deadline
        self._stack = AsyncExitStack()
        self._task = asyncio.create_task(self._begin())

    async def wait(self, seconds: float) -> Begun | None:
        """What has begun; None if nothing has by then.

        Raises:
            ParleyError: what refused the answers or failed them.
        """
        await asyncio.wait({self._task}, timeout=seconds)
        return self._task.result() if self._task.done() else None

    async def aclose(self) -> None:
        """Ends the wait, then the answers."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._stack.aclose()

    async def _begin(self) -> Begun:
        async with kept(self._deadline):
            prompt, events = await self._stack.enter_async_context(self._answers)
            first = await events.next()
            while isinstance(first, Delta) and not first.tokens:  # an engine's sign of life is nothing of an answer yet
                first = await events.next()
        if isinstance(first, Failure):
            raise first.error()
        return Begun(prompt, events, first)


class Streamed(Response):
    """A response that closes its answers however it ends, also when its first frame was never asked for.

    Args:
        opening: its answers.
        begun: the same, if they have begun.
        make: what makes their frames.
    """

    media_type = "text/event-stream"

    def __init__(self, opening: Opening, begun: Begun | None, make: MakeFrames) -> None:
        self._opening = opening
        self._begun = begun
        self._make = make
        self.status_code = 200
        self.background = None
        self.init_headers(HEADERS | (dropped(begun.prompt) if begun else {}))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the frames until they end or their reader goes away."""
        try:
            with suppress(ParleyError):  # the reader went away: nobody is left to be told
                await unless_disconnected(receive, self._send(send, scope.get(WRITE, refuse)))
        finally:
            await self._opening.aclose()

    async def _send(self, send: Send, write: Write) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        begun = self._begun or await self._late(send)
        if begun is not None:
            frames = self._make(begun.prompt)
            await send(piece(frames.head() + frames.take(begun.first)))
            await _tell(frames, begun.events, send, write)
        await self._opening.aclose()  # before its end is told: who asks next finds the place free
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _late(self, send: Send) -> Begun | None:
        """Answers that were waited for so long that proxies would soon take the connection for dead.

        None if they failed, which has been told.
        """
        try:
            await send(piece(KEEP_ALIVE))
            while (begun := await self._opening.wait(KEEP_ALIVE_SECONDS)) is None:
                await send(piece(KEEP_ALIVE))
        except ParleyError as error:
            current().code = error.code
            await send(piece(error_frame(error)))
            return None
        for name, value in dropped(begun.prompt).items():
            await send(piece(comment(f"{name}: {value}")))
        return begun


async def _tell(frames: Frames, events: EventSource, send: Send, write: Write) -> None:
    """Sends frames until they are over: a token's in the wake-up in which it came, unless its reader is slow."""

    def take(delta: Delta) -> bool:
        frame = frames.take(delta)
        return not frame or write(frame.encode())

    while not frames.over:
        frame = frames.take(await events.next(take))
        if frame and not write(frame.encode()):
            await send(piece(frame))


def piece(text: str) -> Message:
    """Some of a response's body, with more to follow."""
    return {"type": "http.response.body", "body": text.encode(), "more_body": True}


async def streamed(answers: Answers, deadline: float | None, receive: Receive, make: MakeFrames) -> Streamed:
    """The response. What fails soon, before the first event, is still answered with a status of its own.

    Args:
        answers: not entered yet.
        deadline: of the client, for the first event.
        receive: the request's ASGI `receive`, its body already read; a client that leaves cancels its answers.
        make: what makes the frames of answers that have begun.

    Raises:
        ParleyError: what refused the answers, or failed them before their first event.
    """
    opening = Opening(answers, deadline)
    try:
        begun = await unless_disconnected(receive, opening.wait(KEEP_ALIVE_SECONDS))
    except BaseException:
        await opening.aclose()
        raise
    return Streamed(opening, begun, make)
