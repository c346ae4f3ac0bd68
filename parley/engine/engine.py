"""Engine: all that the API knows of a model. `generate` streams events; the last one is always terminal."""

from collections.abc import AsyncGenerator, Callable, Sequence
from enum import StrEnum
from typing import Any, Protocol

from msgspec import Struct

from parley.contract.chat import Message
from parley.contract.errors import ErrorCode, ParleyError
from parley.engine.runner import FinishReason, ModelInfo, Sampling


class TokenLogprob(Struct, frozen=True, array_like=True, gc=False):
    """One token of the answer, and the natural logarithm of its probability. `token` is its text in UTF-8."""

    token: bytes | None
    """None where the token is a part of a character only."""
    logprob: float
    likeliest: list[tuple[bytes | None, float]] = []
    """The likeliest tokens at its place, if they were asked for."""


class Delta(Struct, frozen=True, array_like=True, tag=0, gc=False):
    """Some more of the answer. `text` may be empty while a character or a stop string is incomplete."""

    id: int
    text: str
    tokens: int
    """How many tokens came with it, of one step or of several; of an upstream, pieces. 0 is a sign of life."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the tokens whose text is out, if they were asked for."""


def merged(deltas: Sequence[Delta]) -> Delta:
    """Several pieces of one answer as one."""
    if len(deltas) == 1:
        return deltas[0]
    logprobs = tuple(logprob for delta in deltas for logprob in delta.logprobs)
    return Delta(deltas[0].id, "".join(delta.text for delta in deltas), sum(delta.tokens for delta in deltas), logprobs)


class Finish(Struct, frozen=True, array_like=True, tag=1, gc=False):
    """The answer is complete. Terminal. `text` is its last piece."""

    id: int
    text: str
    reason: FinishReason
    prompt_tokens: int | None
    """None, as `completion_tokens`, where an upstream does not tell."""
    completion_tokens: int | None
    cached_tokens: int | None
    """Prompt tokens whose work was reused; None where the engine does not tell."""
    logprobs: tuple[TokenLogprob, ...] = ()
    usage: dict[str, Any] = {}
    """What an upstream says of its usage, its cost for one, in its own words; empty for engines of our own."""


class Failure(Struct, frozen=True, array_like=True, tag=2):
    """The answer failed. Terminal. `message` holds no user text."""

    id: int
    code: ErrorCode
    message: str
    param: str | None = None
    retry_after: float | None = None
    """Seconds after which a retry is worth it, if that is known."""

    @classmethod
    def of(cls, stream_id: int, error: ParleyError) -> "Failure":
        """An error as the end of an answer."""
        return cls(stream_id, error.code, error.message, error.param, error.retry_after)

    def error(self) -> ParleyError:
        """The same as what is raised."""
        return ParleyError(self.code, self.message, self.param, self.retry_after)


Event = Delta | Finish | Failure

Content = list[int] | tuple[Message, ...]
"""What an engine reads: token ids, or the messages themselves where it has a tokenizer of its own."""


class State(StrEnum):
    """The life of an engine, as `/readyz` tells it."""

    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    DRAINING = "draining"
    FAILED = "failed"


class Health(Struct, frozen=True):
    """How the engine is, now."""

    state: State
    detail: str
    """One sentence: why it is not ready, or what serves."""
    running: int
    """Answers under way."""
    restarts: int
    cache_usage: float | None = None
    """The part of the KV cache in use, from 0 to 1; None where the engine does not tell."""


Take = Callable[[Delta], bool]
"""What a reader leaves behind while it waits: is offered each `Delta` as it comes, and says whether it took it."""


class EventSource(Protocol):
    """Events of one answer, for one reader, which stops after the terminal one."""

    async def next(self, take: Take | None = None) -> Event:
        """The next event that was not taken; raises what `take` raised.

        To wake a task costs several times what a token costs otherwise. What waits here leaves `take` behind, which is
        called in the wake-up in which a `Delta` came; a source may do without.
        """

    async def aclose(self) -> None:
        """Nobody reads it any more."""


class Generated:
    """Events of an asynchronous generator as an `EventSource`."""

    def __init__(self, events: AsyncGenerator[Event, None]) -> None:
        self._events = events

    async def next(self, take: Take | None = None) -> Event:
        """The next event."""
        return await anext(self._events)

    async def aclose(self) -> None:
        """Ends the generator."""
        await self._events.aclose()


class Engine(Protocol):
    """A source of answers."""

    @property
    def info(self) -> ModelInfo | None:
        """What serves; None until it has loaded."""

    async def start(self) -> None:
        """Begins loading; returns before the model is ready."""

    async def settled(self) -> Health:
        """Waits until the first loading has ended, well or not."""

    def generate(self, prompt: Content, sampling: Sampling) -> EventSource:
        """Streams one answer.

        Args:
            prompt: what the engine reads, from `parley.prompt`.
            sampling: how to choose tokens.

        Gives `Delta`s, then one `Finish` or `Failure`. Closing it early cancels the job.

        Raises:
            ParleyError: `ENGINE_UNAVAILABLE` when the engine is not ready, `DRAINING` when it takes nothing new; with
                the first event, an upstream's error before its first byte.
        """

    async def drain(self, grace: float) -> int:
        """Takes nothing new, waits up to `grace` seconds, then stops; returns how many answers were cut."""

    def health(self) -> Health:
        """How the engine is, now."""
