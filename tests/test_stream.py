"""One answer's events on their way through the API's process: in order, to whoever is ready for them, and whole."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.types import Message

from parley.api.completions import CompletionFrames
from parley.api.protocol import WRITE
from parley.api.sse import Chunks
from parley.api.streamed import streamed
from parley.engine.engine import Delta, EventSource, Finish
from parley.engine.stream import Stream
from parley.prompt import Prompt
from tests.test_streamed import connected

PROMPT = Prompt([1], 0, 0)


def word(number: int) -> Delta:
    return Delta(1, f"{number} ", 1)


async def test_tokens_are_taken_while_the_reader_waits_and_kept_while_it_does_not() -> None:
    """Fails when a token that is handed on at once overtakes one that is still unread, or is told twice."""
    stream = Stream(1)
    taken: list[str] = []

    def take(delta: Delta) -> bool:
        if len(taken) == 2:
            return False
        taken.append(delta.text)
        return True

    stream.offer(word(0))
    first = await stream.next(take)
    assert (first.text, taken) == ("0 ", [])  # type: ignore[union-attr]  # nobody waited
    waiting = asyncio.create_task(stream.next(take))
    await asyncio.sleep(0)
    for number in range(1, 5):
        stream.offer(word(number))
    second = await waiting
    assert taken == ["1 ", "2 "]
    assert isinstance(second, Delta)
    assert (second.text, second.tokens) == ("3 4 ", 2)


async def test_an_error_of_one_reader_is_raised_to_that_reader() -> None:
    """Fails when one answer that cannot be told takes the connection to the engine down, and all answers with it."""
    stream = Stream(1)

    def take(delta: Delta) -> bool:
        raise ValueError(delta.text)

    waiting = asyncio.create_task(stream.next(take))
    await asyncio.sleep(0)
    stream.offer(word(7))
    with pytest.raises(ValueError, match="7 "):
        await waiting


@pytest.mark.parametrize("refused", [1, 2, 3])
async def test_a_reader_that_is_slow_at_times_gets_every_token_in_order(refused: int) -> None:
    """Fails when what waits for a slow reader and what is written at once are mixed up, doubled or lost."""
    stream = Stream(1)
    body: list[bytes] = []
    written = 0

    def write(piece: bytes) -> bool:
        nonlocal written
        written += 1
        if written % 3 < refused:
            return False
        body.append(piece)
        return True

    async def send(message: Message) -> None:
        if message.get("body"):
            await asyncio.sleep(0.001)
            body.append(message["body"])

    @asynccontextmanager
    async def answers() -> AsyncIterator[tuple[Prompt, EventSource]]:
        yield PROMPT, stream

    async def engine() -> None:
        for number in range(200):
            stream.offer(word(number))
            await asyncio.sleep(0.0003)
        stream.offer(Finish(1, "end", "stop", 1, 201, 0))

    chunks = Chunks("chatcmpl-1", 0, "echo", include_usage=False, logprobs=False)
    telling = asyncio.create_task(engine())
    response = await streamed(answers(), None, connected, lambda prompt: CompletionFrames(chunks, prompt, 1, False))
    await response({"type": "http", "asgi": {"spec_version": "2.3"}, WRITE: write}, connected, send)
    await telling
    frames = b"".join(body).decode().split("\n\n")
    texts = [frame.split('"content":"')[1].split('"')[0] for frame in frames if '"content":"' in frame]
    assert "".join(texts) == "".join(f"{number} " for number in range(200)) + "end"
    assert frames[-2:] == ["data: [DONE]", ""]
