"""Recordings of answers to requests with an `Idempotency-Key`, one by one."""

import asyncio
import time

import pytest
from starlette.types import Message, Receive, Scope, Send

from parley.api import deadline
from parley.api.idempotency import Asked, Recordings
from parley.api.sse import DONE, KEEP_ALIVE
from parley.contract.errors import ErrorCode, ParleyError
from parley.telemetry.record import Head, Progress, begin

SCOPE = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [(b"idempotency-key", b"k")]}
STREAM = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}


class Client:
    """Asks, and keeps what it is sent."""

    def __init__(
        self,
        recordings: Recordings,
        app: "App",
        owner: str = "",
        body: bytes = b"{}",
        patience: str = "",
        header: bytes = b"x-request-timeout",
    ) -> None:
        self.sent: list[Message] = []
        self.left = asyncio.Event()
        asked = Asked.by(owner, SCOPE, body)
        assert asked
        more = [(header, patience.encode())] if patience else []
        scope = {**SCOPE, "headers": [*SCOPE["headers"], *more]}  # type: ignore[misc]
        begin(Progress(Head("id", "POST", "/v1/chat/completions", time.monotonic())))
        self.task = asyncio.ensure_future(recordings.answer(asked, app, scope, self._receive, self._send, body))

    async def _receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def replayed(self) -> bool:
        return any(name == b"idempotent-replayed" for name, _ in self.sent[0]["headers"])


class App:
    """Sends these messages, each after the first ones when it is let; counts how often it is asked."""

    def __init__(self, *messages: Message, first: int = 1) -> None:
        self._messages = messages
        self._first = first
        self.let = asyncio.Event()
        self.asked = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked += 1
        for number, message in enumerate(self._messages, 1):
            await send(message)
            if number >= self._first:
                await self.let.wait()


def body(data: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def test_a_stream_that_broke_off_before_its_first_frame_is_made_anew() -> None:
    """Fails when a retry gets half an answer, or an internal error, for what never came about."""
    recordings = Recordings(60)
    for broken in ((STREAM,), (STREAM, body(b"data: half\n\n")), (STREAM, body(b"", more=False))):
        app = App(*broken)
        app.let.set()
        await Client(recordings, app).task
    whole = App(STREAM, body(b"data: all\n\n"), body(b"data: [DONE]\n\n"), body(b"", more=False))
    whole.let.set()
    first, second = Client(recordings, whole), Client(recordings, whole)
    await asyncio.gather(first.task, second.task)
    assert (whole.asked, first.replayed, second.replayed) == (1, False, True)


@pytest.mark.parametrize("failed", [(STREAM,), ({**STREAM, "status": 400, "headers": []}, body(b"{}", more=False))])
async def test_what_has_failed_does_not_hold_its_key(failed: tuple[Message, ...]) -> None:
    """Fails when a client that mends its request is told that its key belongs to the one that was refused."""
    recordings, broken = Recordings(60), App(*failed)
    broken.let.set()
    await Client(recordings, broken, body=b"[]").task
    app = App({**STREAM, "headers": []}, body(b"x", more=False))
    mended = Client(recordings, app)
    await asyncio.sleep(0.01)
    assert not mended.task.done()
    with pytest.raises(ParleyError) as caught:
        await Client(recordings, app, body=b"[]").task
    assert caught.value.code is ErrorCode.IDEMPOTENCY_CONFLICT
    app.let.set()
    await mended.task
    assert (app.asked, mended.replayed) == (1, False)


def test_a_header_that_shapes_the_answer_makes_another_request() -> None:
    """Fails when a retry with another context policy is given the answer that the first one shaped."""
    policies = (b"error", b"keep_recent", b"keep_recent")
    scopes = [{**SCOPE, "headers": [*SCOPE["headers"], (b"x-context-policy", policy)]} for policy in policies]  # type: ignore[misc]
    one, other, again = (Asked.by("", scope, b"{}") for scope in scopes)
    assert one != other
    assert other == again


async def test_owners_do_not_share_their_keys() -> None:
    """Fails when one API key's answer is given to another, or is in its way."""
    recordings, app = Recordings(60), App({**STREAM, "headers": []}, body(b"x", more=False))
    app.let.set()
    clients = [Client(recordings, app, owner, content) for owner, content in (("a", b"{}"), ("b", b"[]"))]
    await asyncio.gather(*(client.task for client in clients))
    assert [client.replayed for client in clients] == [False, False]
    with pytest.raises(ParleyError) as caught:
        await Client(recordings, app, "a", b"[]").task
    assert caught.value.code is ErrorCode.IDEMPOTENCY_CONFLICT


async def test_a_client_that_leaves_is_done_when_its_answer_is() -> None:
    """Fails when the record of a request is written before the answer that it began has ended."""
    recordings, app = Recordings(60), App({**STREAM, "headers": []}, body(b"x", more=False))
    client = Client(recordings, app)
    await asyncio.sleep(0.01)
    client.left.set()
    await asyncio.sleep(0.01)
    assert not client.task.done()
    app.let.set()
    with pytest.raises(ParleyError) as caught:
        await client.task
    assert caught.value.code is ErrorCode.CLIENT_CLOSED_REQUEST


async def test_a_stream_that_only_shows_signs_of_life_keeps_its_clients_deadline() -> None:
    """Fails when a client with a deadline waits on, because a keep-alive counts as the first piece of its answer."""
    recordings = Recordings(60)
    rest = (body(b"data: all\n\n"), body(DONE.encode()), body(b"", more=False))
    app = App(STREAM, body(KEEP_ALIVE.encode()), *rest, first=2)
    patient, hasty = Client(recordings, app), Client(recordings, app, patience="0.2")
    await asyncio.wait_for(hasty.task, 10)
    assert b"deadline_exceeded" in hasty.sent[-2]["body"]
    assert hasty.sent[-1] == body(b"", more=False)
    assert not patient.task.done()
    app.let.set()
    await patient.task
    assert patient.sent[-2]["body"] == DONE.encode()


async def test_a_stream_that_shows_signs_of_life_outlives_a_gap_that_they_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when OpenAI's client is given up on in a stream that it would have read to its end."""
    monkeypatch.setattr(deadline, "KEEP_ALIVE_SECONDS", 0.05)
    recordings = Recordings(60)
    rest = (body(b"data: all\n\n"), body(DONE.encode()), body(b"", more=False))
    streamed, whole = App(STREAM, body(KEEP_ALIVE.encode()), *rest, first=2), App({**STREAM, "headers": []}, *rest)
    header = b"x-stainless-read-timeout"
    reader = Client(recordings, streamed, "a", patience="0.2", header=header)
    waiter = Client(recordings, whole, "b", patience="0.2", header=header)
    await asyncio.sleep(0.5)
    for app in (streamed, whole):
        app.let.set()
    await asyncio.gather(reader.task, waiter.task)
    assert reader.sent[-2]["body"] == DONE.encode()
    assert b"deadline_exceeded" in waiter.sent[-2]["body"]


async def test_what_is_too_old_is_forgotten() -> None:
    """Fails when a key is used up for ever, or for less than the window."""
    recordings, app = Recordings(0.05), App({**STREAM, "headers": []}, body(b"x", more=False))
    app.let.set()
    replayed: list[bool] = []
    for pause in (0.0, 0.0, 0.06):
        await asyncio.sleep(pause)
        client = Client(recordings, app)
        await client.task
        replayed.append(client.replayed)
    assert replayed == [False, True, False]
