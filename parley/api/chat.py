"""Chat: from the messages of any route to one answer of the engine."""

import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import msgspec

from parley.api.admission import Admission
from parley.contract.chat import Message
from parley.contract.errors import ErrorCode, ParleyError
from parley.contract.openai import ContextPolicy
from parley.engine.engine import Engine, Event, Failure, Finish
from parley.engine.runner import ModelInfo, Sampling
from parley.prompt import Prompt, PromptBuilder

T = TypeVar("T")


@dataclass(frozen=True)
class Completion:
    """A whole answer, and how it was come by."""

    text: str
    finish: Finish
    prompt: Prompt


class Chat:
    """What every route uses.

    Args:
        engine: where answers come from.
        builder: makes the prompt builder for a loaded model.
        admission: the door in front of the engine.
        max_tokens: longest answer where neither the request nor the model says one.
        served: the model's name in `GET /v1/models`.
    """

    def __init__(
        self,
        engine: Engine,
        builder: Callable[[ModelInfo], PromptBuilder],
        admission: Admission,
        max_tokens: int,
        served: str,
    ) -> None:
        self.engine = engine
        self.served = served
        self._make_builder = builder
        self._builder: PromptBuilder | None = None
        self._admission = admission
        self._max_tokens = max_tokens

    @property
    def info(self) -> ModelInfo:
        """What serves.

        Raises:
            ParleyError: `ENGINE_UNAVAILABLE` while nothing does.
        """
        if self.engine.info is None:
            raise ParleyError(
                ErrorCode.ENGINE_UNAVAILABLE, f"Not ready: {self.engine.health().detail}.", retry_after=1.0
            )
        return self.engine.info

    @asynccontextmanager
    async def answer(
        self, messages: Sequence[Message], sampling: Sampling, policy: ContextPolicy | None = None
    ) -> AsyncIterator[tuple[Prompt, AsyncGenerator[Event, None]]]:
        """Admits a request and opens its answer; leaving the context cancels what still runs.

        Raises:
            ParleyError: whatever refuses the request before the engine starts on it.
        """
        refuse_unhonoured(sampling, self.info)
        self._admission.enter(random.random())
        began = time.monotonic()
        try:
            prompt, bounded = self._prepare(messages, sampling, policy)
            async with aclosing(self.engine.generate(prompt.ids, bounded)) as events:
                yield prompt, events
        finally:
            self._admission.leave(time.monotonic() - began)

    async def complete(
        self, messages: Sequence[Message], sampling: Sampling, policy: ContextPolicy | None = None
    ) -> Completion:
        """The whole answer.

        Raises:
            ParleyError: what refused the request, or what the engine failed with.
        """
        async with self.answer(messages, sampling, policy) as (prompt, events):
            texts: list[str] = []
            async for event in events:
                if isinstance(event, Failure):
                    raise ParleyError(event.code, event.message)
                texts.append(event.text)
        assert isinstance(event, Finish)
        return Completion("".join(texts), event, prompt)

    def _prepare(
        self, messages: Sequence[Message], sampling: Sampling, policy: ContextPolicy | None
    ) -> tuple[Prompt, Sampling]:
        if self._builder is None:
            self._builder = self._make_builder(self.info)
        prompt = self._builder.build(messages, sampling.max_tokens, policy)
        room = self._builder.room_for_answer(prompt)
        if room is None:
            return prompt, sampling
        limit = min(room, sampling.max_tokens or self._max_tokens)
        return prompt, msgspec.structs.replace(sampling, max_tokens=limit)


def refuse_unhonoured(sampling: Sampling, info: ModelInfo) -> None:
    """Refuses a parameter that the engine would not honour, by its name."""
    for field in sampling.__struct_fields__:
        if getattr(sampling, field) not in (None, ()) and field not in info.parameters:
            raise ParleyError(
                ErrorCode.UNSUPPORTED_PARAMETER, f"The {info.engine} engine does not support {field}.", field
            )


async def unless_disconnected(receive: Callable[[], Awaitable[Any]], work: Coroutine[Any, Any, T]) -> T:
    """Runs `work`, and cancels it when the client closes the connection.

    Args:
        receive: the request's ASGI `receive`, its body already read.
        work: what makes the answer.

    Raises:
        ParleyError: `CLIENT_CLOSED_REQUEST` when the client left first; whatever `work` raises.
    """
    results: list[T] = []
    failures: list[ParleyError] = []

    async def run() -> None:
        try:
            results.append(await work)
        except ParleyError as error:
            failures.append(error)
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        while (await receive())["type"] != "http.disconnect":
            pass
        group.cancel_scope.cancel()
    if failures:
        raise failures[0]
    if not results:
        raise ParleyError(ErrorCode.CLIENT_CLOSED_REQUEST, "The client left.")
    return results[0]
