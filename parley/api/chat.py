"""Chat: from the messages of any route to one answer of the engine."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from msgspec.structs import replace

from parley.api.admission import Admission, Place
from parley.api.answers import Timed, one_stream
from parley.api.deadline import kept
from parley.api.keys import Key
from parley.api.observed import Observed
from parley.api.terms import PLAIN, Terms
from parley.contract.chat import Message
from parley.contract.errors import ErrorCode, ParleyError
from parley.contract.openai import ContextPolicy
from parley.engine.engine import Delta, Engine, EventSource, Failure, Finish, TokenLogprob
from parley.engine.runner import EVERY_TOKEN, ModelInfo, Sampling
from parley.prompt import Builder, Prompt
from parley.telemetry.record import current

BRIEF_CHARS = 10_000
"""Conversations up to this length are tokenized on the event loop: it takes a millisecond or two."""

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """One whole answer."""

    text: str
    finish: Finish
    logprobs: list[TokenLogprob]

    @classmethod
    def of(cls, events: Sequence[Delta | Finish]) -> "Answer":
        """The answer that these events make together, the last of them its finish."""
        finish = events[-1]
        assert isinstance(finish, Finish)
        texts = "".join(event.text for event in events)
        return cls(texts, finish, [logprob for event in events for logprob in event.logprobs])


@dataclass(frozen=True)
class Completion:
    """All answers to one request, and what they are answers to."""

    answers: list[Answer]
    prompt: Prompt


class Chat:
    """What every route uses.

    Args:
        engine: where answers come from.
        builder: makes the prompt builder for a loaded model.
        admission: the door in front of the engine.
        max_tokens: longest answer where neither the request nor the model says one; an upstream keeps to its own.
        served: the model's name in `GET /v1/models`.
        longest: seconds after which an answer is ended.
    """

    def __init__(
        self,
        engine: Engine,
        builder: Callable[[ModelInfo], Builder],
        admission: Admission,
        max_tokens: int,
        served: str,
        longest: float,
    ) -> None:
        self.engine = engine
        self.served = served
        self._make_builder = builder
        self._builder: Builder | None = None
        self.admission = admission
        self._max_tokens = max_tokens
        self._longest = longest

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

    @property
    def builder(self) -> Builder:
        """What makes prompts for the loaded model; raises what `info` raises."""
        if self._builder is None:
            self._builder = self._make_builder(self.info)
        return self._builder

    def refuse_if_full(self) -> None:
        """Raises what refuses a request for one answer now: cheap to ask before a request is read any further."""
        self.admission.refuse_if_full(1, random.random())

    @asynccontextmanager
    async def answer(
        self, messages: Sequence[Message], sampling: Sampling, terms: Terms = PLAIN
    ) -> AsyncIterator[tuple[Prompt, EventSource]]:
        """Admits a request and opens its answers; leaving the context cancels what still runs.

        An event's `id` is the index of the answer that it belongs to.

        Raises:
            ParleyError: whatever refuses the request before the engine starts on it.
        """
        sampling = honoured(sampling, self.info)
        with charged(terms.key, terms.answers) as spent:
            async with self._place(terms) as place:
                prompt, bounded = await self._prepare(messages, sampling, terms.policy)
                async with self._opened(prompt, bounded, terms.answers) as answers:
                    try:
                        async with one_stream(answers) as events:
                            yield prompt, events
                    finally:
                        observed = [answer.observed for answer in answers]
                        spent.append(max(answer.prompt_tokens or 0 for answer in observed))
                        place.answered = any(answer.tokens for answer in observed)
                        for answer in observed:
                            answer.close(self.served, place)
                            spent.append(answer.tokens)

    async def complete(self, messages: Sequence[Message], sampling: Sampling, terms: Terms = PLAIN) -> Completion:
        """All answers, whole.

        Raises:
            ParleyError: what refused the request, or what the engine failed with.
        """
        parts: list[list[Delta | Finish]] = [[] for _ in range(terms.answers)]

        def take(event: Delta | Finish) -> bool:
            parts[event.id].append(event)
            return True

        async with kept(terms.deadline), self.answer(messages, sampling, terms) as (prompt, events):
            under_way = terms.answers
            while under_way:
                event = await events.next(take)
                if isinstance(event, Failure):
                    raise event.error()
                take(event)
                under_way -= isinstance(event, Finish)
        return Completion([Answer.of(part) for part in parts], prompt)

    @asynccontextmanager
    async def _place(self, terms: Terms) -> AsyncIterator[Place]:
        """A place in the batch, waited for in the order of arrival and no longer than the client waits."""
        started = asyncio.Event()
        patience = None if terms.deadline is None else terms.deadline - asyncio.get_running_loop().time()
        place = self.admission.enter(terms.answers, patience, time.monotonic(), random.random(), started.set)
        try:
            async with kept(terms.deadline):
                await started.wait()
            yield place
        finally:
            self.admission.leave(place, time.monotonic())

    @asynccontextmanager
    async def _opened(self, prompt: Prompt, sampling: Sampling, count: int) -> AsyncIterator[list[Timed]]:
        """This many answers of the engine, none of them begun yet."""
        ends = asyncio.get_running_loop().time() + self._longest
        async with AsyncExitStack() as stack:
            answers = []
            for index in range(count):
                events = self.engine.generate(prompt.content, seeded(sampling, index))
                answer = Timed(events, index, ends, Observed(current(), prompt.tokens))
                answers.append(await stack.enter_async_context(aclosing(answer)))
            yield answers

    async def _prepare(
        self, messages: Sequence[Message], sampling: Sampling, policy: ContextPolicy | None
    ) -> tuple[Prompt, Sampling]:
        builder = self.builder
        length = sum(len(message.content) for message in messages)
        prompt = await off_loop(length, lambda: builder.build(messages, sampling.max_tokens, policy))
        otherwise = self.info.longest_answer or self._max_tokens
        limit = builder.longest_answer(prompt, sampling.max_tokens, otherwise)
        return prompt, replace(sampling, max_tokens=limit)


async def off_loop(length: int, work: Callable[[], T]) -> T:
    """Does work on a text of this many characters; on a thread where others would notice how long it takes."""
    return work() if length <= BRIEF_CHARS else await asyncio.to_thread(work)


def seeded(sampling: Sampling, index: int) -> Sampling:
    """The sampling of one of several answers: each has a seed of its own, which follows from the request's."""
    return replace(sampling, seed=sampling.seed + index) if sampling.seed is not None and index else sampling


@contextmanager
def charged(key: Key | None, answers: int) -> Iterator[list[int]]:
    """Counts answers against a key's limits while they run, and the tokens put into the list when they have ended."""
    spent: list[int] = []
    if key is None:
        yield spent
        return
    key.begin(answers, time.monotonic())
    try:
        yield spent
    finally:
        key.end(answers, sum(spent), time.monotonic())


NEUTRAL = {"top_k": EVERY_TOKEN, "repetition_penalty": 1.0}
"""What clients write out that want nothing. An engine that knows the parameter is still told: its model's generation
config may say otherwise."""


def honoured(sampling: Sampling, info: ModelInfo) -> Sampling:
    """What the engine is to be told: all that is asked for, but for what is neutral and unknown to it.

    Raises:
        ParleyError: `UNSUPPORTED_PARAMETER` for what the engine would not honour, by its name; `INVALID_VALUE` for a
            token that the model does not have.
    """
    idle = [name for name, value in NEUTRAL.items() if getattr(sampling, name) == value and name not in info.parameters]
    sampling = replace(sampling, **dict.fromkeys(idle)) if idle else sampling
    for field in sampling.__struct_fields__:
        if getattr(sampling, field) not in (None, (), {}) and field not in info.parameters:
            raise ParleyError(
                ErrorCode.UNSUPPORTED_PARAMETER, f"The {info.engine} engine does not support {field}.", field
            )
    if sampling.logit_bias and info.vocabulary is not None and max(sampling.logit_bias) >= info.vocabulary:
        message = f"logit_bias: this model's token ids end before {info.vocabulary}"
        raise ParleyError(ErrorCode.INVALID_VALUE, message, "logit_bias")
    return sampling
