"""The upstream engine itself: a second Parley, starts and ends, retries, what is sent and what is counted."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from parley.contract.chat import Message
from parley.contract.errors import ErrorCode, ParleyError
from parley.engine.engine import Delta, Event, Failure, Finish, State
from parley.engine.runner import Sampling
from parley.engine.upstream import engine as upstream_engine
from parley.engine.upstream import reading
from parley.engine.upstream.engine import UpstreamEngine
from parley.engine.upstream.fault import retry_after
from parley.engine.upstream.patience import Patience
from parley.engine.upstream.transport import Address
from tests.conftest import Served, free_port, serve
from tests.events import all_events
from tests.faulty import DONE, ENDED, KEY, USAGE, WHOLE, event, forever, raw, silence, text, told
from tests.scripted import STREAM_HEAD, Say, Script, answers, chat_service, chunked, scripted, streams

QUICK = Patience(connect=1.0, first_byte=0.5, silence=0.5, total=5.0, first_pause=0.01)
HELLO = (Message("user", "hello there"),)


def test_an_upstream_that_leaves_the_choice_open_ends_the_start() -> None:
    """Fails when a service without a model looks healthy, or its failed start is not one line."""
    listing = answers("200 OK", b'{"data": [{"id": "one"}, {"id": "two"}]}')
    with scripted(listing) as upstream:
        env = {"PARLEY_ENGINE": "upstream", "PARLEY_UPSTREAM_URL": upstream.url}
        with serve(env, ready=False) as served:
            assert served.process.wait(60) == 1
            said = [line for line in served.log().splitlines() if line.startswith("parley: ")]
    assert said == ["parley: the upstream lists 2 models (one, two): set PARLEY_UPSTREAM_MODEL to the one to use"]


@asynccontextmanager
async def connected(url: str, patience: Patience = QUICK, **address: str) -> AsyncIterator[UpstreamEngine]:
    engine = UpstreamEngine(Address(f"{url}/v1", **address), patience)
    await engine.start()
    try:
        await asyncio.wait_for(engine.settled(), 10)
        yield engine
    finally:
        await engine.drain(0)


async def answer(
    engine: UpstreamEngine, messages: tuple[Message, ...] = HELLO, sampling: Sampling | None = None
) -> list[Event]:
    return await all_events(engine.generate(messages, sampling or Sampling()))


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if not isinstance(event, Failure))


def connections_to(port: int) -> int:
    """Established connections to a port of this machine, from proc_net(5)."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


async def test_another_parley_is_an_upstream(echo_service: Served) -> None:
    """Fails when two of our own do not understand each other: text, counts, limits, or what is honoured."""
    async with connected(echo_service.url, Patience()) as engine:
        assert engine.info is not None
        assert engine.info.parameters == ["max_tokens", "stop"]
        assert engine.info.context_length == 8192
        events = await answer(engine, (Message("user", "to be or not to be"),))
        assert text_of(events) == "to be or not to be"
        finish = events[-1]
        assert isinstance(finish, Finish)
        assert (finish.reason, finish.prompt_tokens, finish.completion_tokens) == ("stop", 18, 18)
        cut = await answer(engine, (Message("user", "one two three four"),), Sampling(stop=("three",)))
        assert text_of(cut) == "one two "
        assert [type(event) for event in events[:-1]] == [Delta] * (len(events) - 1)


async def test_an_upstream_that_does_not_answer_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Fails when a service with a wrong address waits without a word, or with one for each try."""
    engine = UpstreamEngine(Address(f"http://127.0.0.1:{free_port()}/v1"), QUICK)
    await engine.start()
    await asyncio.sleep(1.5)  # tried several times by then
    await engine.drain(0)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("/v1: The upstream cannot be reached; it is asked again")


async def test_a_list_that_is_no_text_ends_the_start() -> None:
    """Fails when a service waits for ever for an upstream that has answered, in another encoding than JSON's."""
    latin = answers("200 OK", b'{"data": [{"id": "caf\xe9"}]}')
    with scripted(latin) as upstream:
        async with connected(upstream.url) as engine:
            assert (engine.health().state, "lists no models" in engine.health().detail) == (State.FAILED, True)


async def test_connections_are_used_again(echo_service: Served) -> None:
    """Fails when each answer pays for a connection of its own, because the end of the last one was not read."""
    port = int(echo_service.url.rpartition(":")[2])
    before = connections_to(port)
    async with connected(echo_service.url, Patience()) as engine:
        for _ in range(5):
            assert text_of(await answer(engine)) == "hello there"
            await asyncio.sleep(0.05)
        assert connections_to(port) - before == 1


async def test_an_upstream_that_goes_and_comes_back() -> None:
    """Fails when a start before the upstream's is the end of it, or its return is not noticed."""
    port = free_port()
    service = chat_service(streams(WHOLE))
    engine = UpstreamEngine(Address(f"http://127.0.0.1:{port}/v1"), QUICK)
    await engine.start()
    with pytest.raises(ParleyError) as refused:
        await answer(engine)
    assert (refused.value.code, engine.health().state) == (ErrorCode.ENGINE_UNAVAILABLE, State.LOADING)
    with scripted(service, port):
        await asyncio.wait_for(engine.settled(), 10)
        assert text_of(await answer(engine)) == "all of it"
    await asyncio.sleep(0.05)
    with pytest.raises(ParleyError) as lost:
        await answer(engine)
    assert (lost.value.code, engine.health().state) == (ErrorCode.ENGINE_UNAVAILABLE, State.RESTARTING)
    with scripted(service, port):
        async with asyncio.timeout(10):
            while engine.health().state is not State.READY:
                await asyncio.sleep(0.02)
        assert text_of(await answer(engine)) == "all of it"
    assert engine.health().restarts == 1
    await engine.drain(0)


async def test_what_an_upstream_refuses_on_its_way_back_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when a proxy's refusal, or an empty list, after a short outage leaves the service without its upstream."""
    monkeypatch.setattr(upstream_engine, "FIRST_PAUSE", 0.01)
    port = free_port()
    service = chat_service(streams(WHOLE))
    statuses = ("401 Unauthorized", "403 Forbidden", "404 Not Found", "520 Unknown")
    refusals = iter([*(answers(status, b"{}") for status in statuses), answers("200 OK", b'{"data": []}')])
    details: list[str] = []

    def returning(request: bytes, say: Say) -> None:
        details.append(engine.health().detail)
        next(refusals, service)(request, say)

    engine = UpstreamEngine(Address(f"http://127.0.0.1:{port}/v1"), QUICK)
    with scripted(service, port):
        await engine.start()
        await asyncio.wait_for(engine.settled(), 10)
    await asyncio.sleep(0.05)
    with pytest.raises(ParleyError):
        await answer(engine)
    with scripted(returning, port):
        async with asyncio.timeout(10):
            while engine.health().state is not State.READY:
                assert engine.health().state is State.RESTARTING, engine.health().detail
                await asyncio.sleep(0.005)
        assert text_of(await answer(engine)) == "all of it"
    said = (
        "cannot be reached",
        "refused this service's API key",
        "does not allow",
        "lists no models",
        "520",
        "no models",
    )
    assert [part in detail for part, detail in zip(said, details, strict=False)] == [True] * len(said), details
    await engine.drain(0)


async def test_a_first_list_that_is_late_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when an upstream that is slow to start ends the service, and its key gets the blame."""
    monkeypatch.setattr(upstream_engine, "FIRST_PAUSE", 0.01)
    scripts = iter([silence])

    def slow_at_first(request: bytes, say: Say) -> None:
        script = next(scripts, None)
        chat_service(streams(WHOLE))(request, say) if script is None else script(say)

    with scripted(slow_at_first) as server:
        async with connected(server.url, Patience(connect=0.1)) as engine:
            assert engine.health().state is State.READY, engine.health().detail
    assert len(server.requests) == 2


async def test_a_stop_is_not_undone_by_an_upstream_that_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when a service that is stopping calls itself ready again, and gets requests that it will cut."""
    monkeypatch.setattr(upstream_engine, "FIRST_PAUSE", 0.01)
    port = free_port()
    asked, told_at = threading.Event(), threading.Event()

    def endless(_: bytes, say: Say) -> None:
        say(STREAM_HEAD + chunked(text("slow")))
        silence(say)

    def returning(request: bytes, say: Say) -> None:
        asked.set()
        told_at.wait(5)
        chat_service(streams(WHOLE))(request, say)

    engine = UpstreamEngine(Address(f"http://127.0.0.1:{port}/v1"), Patience())
    with scripted(chat_service(endless), port):
        await engine.start()
        await asyncio.wait_for(engine.settled(), 10)
        events = engine.generate(HELLO, Sampling())
        await events.next()
    await asyncio.sleep(0.05)
    with pytest.raises(ParleyError):
        await answer(engine)
    with scripted(returning, port):
        assert await asyncio.to_thread(asked.wait, 10)
        draining = asyncio.create_task(engine.drain(0.5))
        await asyncio.sleep(0)
        told_at.set()
        while not draining.done():
            assert engine.health().state is State.DRAINING
            await asyncio.sleep(0.01)
    assert await draining == 1


async def test_draining_lets_answers_finish_and_then_ends_them() -> None:
    """Fails when a stop cuts an answer that would have finished, or waits for one that never will."""

    def slow(_: bytes, say: Say) -> None:
        say(STREAM_HEAD + chunked(text("slow")))
        silence(say)

    with scripted(chat_service(slow)) as server:
        async with connected(server.url, Patience()) as engine:
            events = engine.generate(HELLO, Sampling())
            await events.next()
            draining = asyncio.create_task(engine.drain(0.2))
            await asyncio.sleep(0)
            with pytest.raises(ParleyError) as refused:
                await answer(engine)
            assert refused.value.code is ErrorCode.DRAINING
            last = (await all_events(events))[-1]
            assert isinstance(last, Failure)
            assert last.code is ErrorCode.DRAINING
            assert await draining == 1


async def test_a_refusal_in_the_middle_of_an_answer_names_its_field() -> None:
    """Fails when what an upstream refuses late is told without the field that has to be changed."""
    refusal = b"data: " + told(400, param="temperature") + b"\n\n"
    with scripted(chat_service(streams(text("so far"), refusal))) as server:
        async with connected(server.url) as engine:
            last = (await answer(engine))[-1]
    assert isinstance(last, Failure)
    assert (last.code, last.param) == (ErrorCode.INVALID_VALUE, "temperature")


async def test_an_answer_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when an upstream can fill the memory of this service."""
    monkeypatch.setattr(reading, "LONGEST_ANSWER", 100_000)
    flood = raw(STREAM_HEAD, then=forever(chunked(text("x" * 10_000)), 0.001))
    with scripted(chat_service(flood)) as server:
        async with connected(server.url) as engine:
            last = (await answer(engine))[-1]
    assert isinstance(last, Failure)
    assert "does not end" in last.message


async def test_the_length_limit_goes_by_the_name_that_the_model_knows() -> None:
    """Fails when OpenAI's newer models refuse every request that has a limit."""
    asked: list[dict[str, Any]] = []

    def newer(request: bytes, say: Say) -> None:
        asked.append(json.loads(request.partition(b"\r\n\r\n")[2]))
        refusal = answers("400 Bad Request", told("unsupported_parameter", param="max_tokens"))
        script: Script = refusal if "max_tokens" in asked[-1] else streams(WHOLE)
        script(request, say)

    with scripted(chat_service(newer)) as server:
        async with connected(server.url) as engine:
            for _ in range(2):
                assert text_of(await answer(engine, sampling=Sampling(max_tokens=9))) == "all of it"
    assert [body.get("max_completion_tokens") for body in asked] == [None, 9, 9]
    assert asked[0]["messages"] == [{"role": "user", "content": "hello there"}]


async def test_requests_at_once_all_find_the_name_of_the_limit() -> None:
    """Fails when the first requests to one of OpenAI's newer models are refused because another one learnt first."""
    two_are_in = threading.Barrier(2)

    def newer(request: bytes, say: Say) -> None:
        if b'"max_tokens"' in request:
            two_are_in.wait(5)
            answers("400 Bad Request", told("unsupported_parameter", param="max_tokens"))(request, say)
        else:
            streams(WHOLE)(request, say)

    with scripted(chat_service(newer)) as server:
        async with connected(server.url, Patience()) as engine:
            both = await asyncio.gather(*(answer(engine, sampling=Sampling(max_tokens=9)) for _ in range(2)))
    assert [text_of(events) for events in both] == ["all of it"] * 2


@pytest.mark.parametrize(
    ("said", "reason"), [("stop_sequence", "stop"), ("eos_token", "stop"), ("model_length", "length")]
)
async def test_other_servers_words_for_an_end_are_known(said: str, reason: str) -> None:
    """Fails when a whole answer of TGI's or Mistral's is told to be given up."""
    with scripted(chat_service(streams(text("hi", said) + DONE))) as server:
        async with connected(server.url) as engine:
            finish = (await answer(engine))[-1]
    assert isinstance(finish, Finish)
    assert finish.reason == reason


async def test_of_an_answer_in_parts_the_text_is_taken() -> None:
    """Fails when Mistral's reasoning models cannot be served, or their thoughts are taken for the answer."""
    thought = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]
    pieces = [thought, [{"type": "text", "text": "all "}, {"type": "reference", "reference_ids": [1]}], "of it"]
    parts = b"".join(event({"choices": [{"delta": {"content": piece}}]}) for piece in pieces)
    with scripted(chat_service(streams(parts + text("", "stop") + DONE))) as server:
        async with connected(server.url) as engine:
            events = await answer(engine)
    assert text_of(events) == "all of it"
    assert isinstance(events[-1], Finish)


async def test_a_refused_key_and_a_missing_list_fail_the_start() -> None:
    """Fails when a wrong key is found out by the first user instead of at the start."""
    with scripted(answers("401 Unauthorized", b"{}")) as server:
        async with connected(server.url, key=KEY) as engine:
            assert engine.health().state is State.FAILED
            assert "PARLEY_UPSTREAM_API_KEY" in engine.health().detail
            assert KEY not in engine.health().detail
    with scripted(answers("404 Not Found", b"{}")) as server:
        async with connected(server.url) as engine:
            assert "lists no models" in engine.health().detail
        async with connected(server.url, model="asked-for") as engine:
            assert engine.health().state is State.READY


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None, "completion_tokens": None, "total_tokens": None}])
async def test_an_upstream_without_counts_gives_an_answer_without_them(usage: dict[str, Any] | None) -> None:
    """Fails when tokens that nobody counted are made up, or their absence loses the answer.

    That nobody counted is None and not 0: a client that is told 0 tokens takes the answer for free.
    """
    told = text("hi", "stop") + event({"choices": [], "usage": usage}) + DONE
    with scripted(chat_service(streams(told))) as server:
        async with connected(server.url) as engine:
            finish = (await answer(engine))[-1]
    assert isinstance(finish, Finish)
    assert (finish.prompt_tokens, finish.completion_tokens) == (None, None)


async def test_an_answer_with_its_reason_is_whole_without_an_end_of_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when a server that neither says `[DONE]` nor closes loses every answer, whole as it is."""
    monkeypatch.setattr(upstream_engine, "USAGE_SECONDS", 0.1)
    open_ended = raw(STREAM_HEAD, chunked(text("all of it", "stop")), chunked(ENDED), then=silence)
    with scripted(chat_service(open_ended)) as server:
        async with connected(server.url) as engine:
            events = await answer(engine)
    finish = events[-1]
    assert isinstance(finish, Finish), finish
    assert (text_of(events), finish.reason, finish.usage) == ("all of it", "stop", USAGE)


THOUGHT = event({"choices": [{"delta": {"role": "assistant", "content": "", "reasoning_content": "hm"}}]})


def thinks(times: int, pause: float) -> Script:
    """A script for an answer after so many thoughts."""

    def script(_: bytes, say: Say) -> None:
        say(STREAM_HEAD)
        for _ in range(times):
            say(chunked(THOUGHT))
            time.sleep(pause)
        say(chunked(WHOLE) + b"0\r\n\r\n")

    return script


async def test_thoughts_are_no_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when each thought is a keep-alive, of which some clients allow few, or a long thinking gives none."""
    for nudge, pause, signs in ((10.0, 0.001, range(1)), (0.1, 0.01, range(1, 40))):
        monkeypatch.setattr(upstream_engine, "NUDGE_SECONDS", nudge)
        with scripted(chat_service(thinks(80, pause))) as server:
            async with connected(server.url) as engine:
                events = await answer(engine)
        assert text_of(events) == "all of it"
        assert sum(isinstance(event, Delta) and not event.tokens for event in events) in signs


async def test_usage_is_passed_on_no_deeper_than_it_needs() -> None:
    """Fails when an upstream can make our own response impossible to write down."""
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "cost": 0.5, "list": [[1]], "deep": {"a": {"b": 1}, "c": 2}}
    with scripted(chat_service(streams(text("hi", "stop") + event({"choices": [], "usage": usage}) + DONE))) as server:
        async with connected(server.url) as engine:
            finish = (await answer(engine))[-1]
    assert isinstance(finish, Finish)
    assert finish.usage == {"prompt_tokens": 1, "completion_tokens": 1, "cost": 0.5, "deep": {"c": 2}}


def test_waits_that_an_upstream_asks_for() -> None:
    """Fails when a date or an odd number in `Retry-After` breaks an answer, or is waited for too long."""
    now = 1_700_000_000.0
    asked = {"5": 5.0, "-3": 0.0, "nan": None, "soon": None, "1e9": 3600.0, "Tue, 14 Nov 2023 22:13:30 GMT": 10.0}
    assert {text: retry_after({"retry-after": text}, now) for text in asked} == asked
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}, now) == 0.25
    patience = Patience()
    assert patience.pause(3, None, 0.0) is None
    assert [patience.pause(tried, None, 0.0) for tried in (1, 2)] == [0.25, 0.5]
    assert (patience.pause(1, 4.0, 0.5), patience.pause(1, 6.0, 0.5)) == (4.0, None)
