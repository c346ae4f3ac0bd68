"""A backend without a service: the engine in a process of its own, driven from a thread of this one."""

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from queue import SimpleQueue
from threading import Thread

from parley.api.chat import Chat
from parley.api.usage import usage
from parley.client import ServiceHealth
from parley.contract.chat import Message
from parley.contract.errors import ErrorCode, ParleyError
from parley.engine.engine import Delta, Event, Failure, Finish, State
from parley.engine.runner import Sampling
from parley.prompt import Prompt
from parley.reply import Reply


class LocalBackend:
    """Starts the engine of `chat`, and answers from it. All sessions share it, as they would share a service."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._loop = asyncio.new_event_loop()
        # This thread never ends: the engine process dies with the thread that started it.
        Thread(target=self._loop.run_forever, name="engine", daemon=True).start()
        asyncio.run_coroutine_threadsafe(chat.engine.start(), self._loop).result()

    def stream(self, messages: Sequence[Message]) -> "LocalStream":
        """One answer, piece by piece."""
        return LocalStream(self._chat, messages, self._loop)

    def models(self) -> list[str]:
        """The one model."""
        return [self._chat.served]

    def health(self) -> ServiceHealth:
        """The state of the engine."""
        health = self._chat.engine.health()
        return ServiceHealth(health.state is State.READY, health.state.value, health.detail)


class LocalStream:
    """One answer under way. Its events come over from the engine's thread through a queue; None ends them."""

    def __init__(self, chat: Chat, messages: Sequence[Message], loop: asyncio.AbstractEventLoop) -> None:
        self._events: SimpleQueue[Event | ParleyError | None] = SimpleQueue()
        self._model = chat.served
        self._text: list[str] = []
        self._prompt: Prompt | None = None
        self._finish: Finish | None = None
        self._task = asyncio.run_coroutine_threadsafe(self._pump(chat, messages), loop)

    def __enter__(self) -> "LocalStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def __iter__(self) -> Iterator[str]:
        """Pieces of text; raises `ParleyError` when the answer failed or was closed."""
        while (event := self._events.get()) is not None:
            if isinstance(event, ParleyError):
                raise event
            if isinstance(event, Failure):
                raise event.error()
            if isinstance(event, Finish):
                self._finish = event
            if event.text:
                self._text.append(event.text)
                yield event.text
        try:
            self._task.result()
        except CancelledError as error:
            raise ParleyError(ErrorCode.CLIENT_CLOSED_REQUEST, "The answer was stopped.") from error

    @property
    def reply(self) -> Reply:
        """The whole answer, after the iteration; raises `RuntimeError` before."""
        if self._finish is None or self._prompt is None:
            raise RuntimeError("the answer is not complete: iterate to its end first")
        return Reply("".join(self._text), usage(self._finish, self._prompt), self._finish.reason, self._model)

    def cancel(self) -> None:
        """Stops the answer unless it has ended; any thread may call it."""
        self._task.cancel()

    async def _pump(self, chat: Chat, messages: Sequence[Message]) -> None:
        try:
            async with chat.answer(messages, Sampling()) as (self._prompt, events):
                while isinstance(event := await events.next(), Delta):
                    self._events.put(event)
                self._events.put(event)
        except ParleyError as error:
            self._events.put(error)
        finally:
            self._events.put(None)
