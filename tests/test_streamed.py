"""Streamed responses before their first event: what is sent, and what is left when they end."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from starlette.types import Message

from parley.api import streamed as module
from parley.api.streamed import Streamed, streamed
from parley.contract.errors import ErrorCode, ParleyError
from parley.engine.engine import Delta, Event, EventSource, Failure, Generated
from parley.prompt import Prompt

SCOPE = {"type": "http", "asgi": {"spec_version": "2.3"}}


class Source:
    """Answers that begin after a while, or fail; `open` tells whether they are held."""

    def __init__(self, seconds: float = 0.0, error: ParleyError | None = None) -> None:
        self.open = False
        self._seconds = seconds
        self._error = error

    @asynccontextmanager
    async def answers(self) -> AsyncIterator[tuple[Prompt, EventSource]]:
        self.open = True
        try:
            await asyncio.sleep(self._seconds)
            if self._error:
                raise self._error
            yield Prompt([1], 2, 30), Generated(self._events())
        finally:
            self.open = False

    async def _events(self) -> AsyncGenerator[Event, None]:
        yield Delta(0, "hello", 1)


class SlowToBegin(Source):
    """Answers whose engine shows that it lives, and then says this."""

    def __init__(self, *events: Event, signs: int = 10) -> None:
        super().__init__()
        self._said = events
        self._signs = signs

    async def _events(self) -> AsyncGenerator[Event, None]:
        for _ in range(self._signs):
            yield Delta(0, "", 0)
            await asyncio.sleep(0.01)
        for event in self._said:
            yield event


class OneFrame:
    """Frames of an answer that its first event ends."""

    def __init__(self, prompt: Prompt) -> None:
        self.over = False

    def head(self) -> str:
        return ""

    def take(self, event: Event) -> str:
        assert isinstance(event, Delta)
        self.over = True
        return f"data: {event.text}\n\n"


async def connected() -> Message:
    """The `receive` of a client that stays."""
    await asyncio.Event().wait()
    raise AssertionError


async def gone() -> Message:
    """The `receive` of a client that has left."""
    return {"type": "http.disconnect"}


async def body(response: Streamed) -> list[str]:
    """What the response sends, in its pieces."""
    pieces: list[str] = []

    async def take(message: Message) -> None:
        if message.get("body"):
            pieces.append(message["body"].decode())

    await response(SCOPE, connected, take)
    return pieces


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life after a few hundredths of a second."""
    monkeypatch.setattr(module, "KEEP_ALIVE_SECONDS", 0.03)


async def test_r11_a_stream_whose_reader_leaves_before_its_first_frame_frees_its_place() -> None:
    """R11. Fails when a place is given back by a generator only, which never runs for a reader that stalls at once."""
    source = Source()
    response = await streamed(source.answers(), None, connected, OneFrame)
    assert source.open

    async def stalled(_: Message) -> None:
        await asyncio.Event().wait()

    await response(SCOPE, gone, stalled)
    assert not source.open


async def test_r11_a_client_that_leaves_ends_the_wait_for_the_first_event() -> None:
    """R11. Fails when a request goes on waiting for its turn although nobody waits for it."""
    source = Source(seconds=60)
    left = asyncio.Event()

    async def leaves() -> Message:
        await left.wait()
        return {"type": "http.disconnect"}

    waiting = asyncio.create_task(streamed(source.answers(), None, leaves, OneFrame))
    await asyncio.sleep(0.01)
    assert source.open
    left.set()
    with pytest.raises(ParleyError) as caught:
        await asyncio.wait_for(waiting, 1)
    assert caught.value.code is ErrorCode.CLIENT_CLOSED_REQUEST
    assert not source.open


@pytest.mark.usefixtures("impatient")
async def test_who_waits_long_gets_signs_of_life_and_the_whole_answer() -> None:
    """Fails when a proxy takes a client in the queue for dead, or what was dropped is not told because of the wait."""
    source = Source(seconds=0.15)
    pieces = await body(await streamed(source.answers(), None, connected, OneFrame))
    assert pieces[:2] == [": keep-alive\n\n"] * 2
    assert pieces[-3:] == [
        ": x-context-dropped-messages: 2\n\n",
        ": x-context-dropped-tokens: 30\n\n",
        "data: hello\n\n",
    ]
    assert not source.open


@pytest.mark.usefixtures("impatient")
async def test_r01_a_wait_that_ends_in_a_refusal_ends_with_an_error_frame() -> None:
    """R1. Fails when a response that has begun while its client waited ends without a word."""
    source = Source(0.1, ParleyError(ErrorCode.DRAINING, "The service is stopping."))
    pieces = await body(await streamed(source.answers(), None, connected, OneFrame))
    assert pieces[0] == ": keep-alive\n\n"
    assert '"code": "draining"' in pieces[-1]
    assert not source.open


@pytest.mark.parametrize("error", [ParleyError(ErrorCode.DRAINING, "The service is stopping."), None])
async def test_a_refusal_before_the_response_is_a_status(error: ParleyError | None) -> None:
    """Fails when a refusal or a missed deadline becomes a stream with status 200, or leaves its place taken."""
    source = Source(error=error) if error else Source(seconds=60)
    deadline: Callable[[], float] = asyncio.get_running_loop().time
    with pytest.raises(ParleyError) as caught:
        await streamed(source.answers(), deadline() + 0.05, connected, OneFrame)
    assert caught.value.code is (error.code if error else ErrorCode.DEADLINE_EXCEEDED)
    assert not source.open


async def test_a_sign_of_life_of_the_engine_is_not_the_first_event() -> None:
    """Fails when an engine that thinks for ten seconds costs a client its deadline, or a refusal its status."""
    quiet = SlowToBegin(signs=1000)
    with pytest.raises(ParleyError) as late:
        await streamed(quiet.answers(), asyncio.get_running_loop().time() + 0.05, connected, OneFrame)
    failing = SlowToBegin(Failure(0, ErrorCode.UPSTREAM_ERROR, "The upstream broke."))
    with pytest.raises(ParleyError) as failed:
        await streamed(failing.answers(), None, connected, OneFrame)
    assert [late.value.code, failed.value.code] == [ErrorCode.DEADLINE_EXCEEDED, ErrorCode.UPSTREAM_ERROR]
    assert [quiet.open, failing.open] == [False, False]


@pytest.mark.usefixtures("impatient")
async def test_an_engine_that_only_shows_that_it_lives_keeps_the_reader_waiting_visibly() -> None:
    """Fails when signs of life of the engine take the place of those for the reader, whose proxy then gives up."""
    slow = SlowToBegin(Delta(0, "hello", 1))
    pieces = await body(await streamed(slow.answers(), None, connected, OneFrame))
    assert pieces[:2] == [": keep-alive\n\n"] * 2
    assert pieces[-1] == "data: hello\n\n"
