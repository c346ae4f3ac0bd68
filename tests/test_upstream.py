"""The upstream engine: a second Parley, and a stand-in that does whatever an upstream should not (R14)."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import requests

from parley.contract.chat import Message
from parley.contract.errors import ErrorCode, ParleyError
from parley.engine.engine import Delta, Event, Failure, Finish, State
from parley.engine.runner import Sampling
from parley.engine.upstream import reading
from parley.engine.upstream.engine import UpstreamEngine
from parley.engine.upstream.fault import retry_after
from parley.engine.upstream.patience import Patience
from parley.engine.upstream.transport import Address
from tests.conftest import Served, free_port, serve
from tests.faulty import COST, DONE, KEY, MODES, WHOLE, Faulty, event, forever, raw, silence, text, told
from tests.scripted import STREAM_HEAD, Say, Script, answers, chat_service, chunked, scripted, streams

SECRET = "the planted prompt"
QUICK = Patience(connect=1.0, first_byte=0.5, silence=0.5, total=5.0, first_pause=0.01)
HELLO = (Message("user", "hello there"),)


@dataclass(frozen=True)
class Outcome:
    """What a client saw of one fault mode, and how often the upstream was asked."""

    status: int
    headers: str
    body: str
    asked: int

    @property
    def frames(self) -> list[Any]:
        """The data of the events, `[DONE]` included."""
        return [line.removeprefix("data: ") for line in self.body.splitlines() if line.startswith("data: ")]

    @property
    def error(self) -> dict[str, Any]:
        """The error object, of the response or of the last frame."""
        error: dict[str, Any] = json.loads(self.frames[-1] if self.status == 200 else self.body)["error"]
        return error


@pytest.fixture(scope="module")
def faulty() -> Faulty:
    return Faulty()


@pytest.fixture(scope="module")
def front(faulty: Faulty) -> Iterator[Served]:
    """A Parley whose upstream is the stand-in, with deadlines of seconds."""
    with scripted(faulty) as upstream:
        env = {
            "PARLEY_ENGINE": "upstream",
            "PARLEY_UPSTREAM_URL": upstream.url,
            "PARLEY_UPSTREAM_API_KEY": KEY,
            "PARLEY_STEP_TIMEOUT": "2",
            "PARLEY_ANSWER_TIMEOUT": "5",
            "PARLEY_MAX_BATCH": "128",
        }
        with serve(env) as served:
            yield served


def ask(front: Served, mode: str, stream: bool = True, **more: object) -> requests.Response:
    body = {"messages": [{"role": "user", "content": f"{mode} mode: {SECRET}"}], "stream": stream, **more}
    return requests.post(f"{front.url}/v1/chat/completions", json=body, timeout=30)


@pytest.fixture(scope="module")
def outcomes(front: Served, faulty: Faulty) -> dict[str, Outcome]:
    """All modes, together: what takes its time in one does not hold up another."""

    def outcome(mode: str) -> Outcome:
        response = ask(front, mode, temperature=1)
        return Outcome(response.status_code, str(response.headers), response.text, faulty.asked[mode])

    with ThreadPoolExecutor(len(MODES)) as pool:
        return dict(zip(MODES, pool.map(outcome, MODES), strict=True))


@pytest.mark.parametrize(
    "mode",
    ["whole", "carriage-returns", "byte-by-byte", "no-done", "comments", "busy-once", "reset-once", "empty-once"]
    + ["never-ending-after-done"],
)
def test_r14_an_answer_is_whole_however_it_comes(outcomes: dict[str, Outcome], mode: str) -> None:
    """Fails when a server's way of sending, or a passing fault before its first byte, costs us an answer."""
    outcome = outcomes[mode]
    assert outcome.frames[-1] == "[DONE]"
    pieces = [json.loads(frame)["choices"][0] for frame in outcome.frames[:-1]]
    assert "".join(piece["delta"].get("content", "") for piece in pieces) == "all of it"
    assert pieces[-1]["finish_reason"] == "stop"
    assert outcome.asked == (2 if mode.endswith("once") else 1)


@pytest.mark.parametrize(
    ("mode", "status", "code", "asked"),
    [
        ("bad-request", 400, "invalid_value", 1),
        ("too-long", 400, "context_length_exceeded", 1),
        ("too-long-in-words", 400, "context_length_exceeded", 1),
        ("unsupported", 400, "unsupported_parameter", 1),
        ("unprocessable", 400, "invalid_value", 1),
        ("unauthorized", 502, "upstream_error", 1),
        ("forbidden", 502, "upstream_error", 1),
        ("not-found", 502, "upstream_error", 1),
        ("request-timeout", 504, "deadline_exceeded", 3),
        ("busy", 429, "rate_limit_exceeded", 3),
        ("busy-for-long", 429, "rate_limit_exceeded", 1),
        ("no-quota", 429, "rate_limit_exceeded", 1),
        ("internal", 502, "upstream_error", 3),
        ("bad-gateway", 502, "upstream_error", 3),
        ("unavailable", 503, "engine_unavailable", 3),
        ("overloaded", 503, "engine_unavailable", 3),
        ("redirect", 502, "upstream_error", 1),
        ("json", 502, "upstream_error", 1),
        ("html", 502, "upstream_error", 1),
        ("gzip", 502, "upstream_error", 1),
        ("reset", 502, "upstream_error", 3),
        ("closed", 502, "upstream_error", 3),
        ("not-http", 502, "upstream_error", 3),
        ("huge-head", 502, "upstream_error", 3),
        ("head-drip", 504, "deadline_exceeded", 1),
        ("early-hints", 504, "deadline_exceeded", 1),
        ("silent", 504, "deadline_exceeded", 1),
        ("head-only", 504, "deadline_exceeded", 1),
        ("bad-chunk", 502, "upstream_error", 3),
        ("error-first", 503, "engine_unavailable", 1),
    ],
)
def test_r14_a_fault_before_the_first_byte_is_a_status(
    outcomes: dict[str, Outcome], mode: str, status: int, code: str, asked: int
) -> None:
    """Fails when a client gets 200 for an answer that never began, or the upstream is asked too often or too seldom."""
    outcome = outcomes[mode]
    assert (outcome.status, outcome.error["code"], outcome.asked) == (status, code, asked)


@pytest.mark.parametrize(
    ("mode", "code"),
    [
        ("reset-in-answer", "upstream_error"),
        ("cut", "upstream_error"),
        ("cut-politely", "upstream_error"),
        ("done-without-end", "upstream_error"),
        ("short-length", "upstream_error"),
        ("error-event", "upstream_error"),
        ("busy-event", "rate_limit_exceeded"),
        ("not-json", "upstream_error"),
        ("not-utf-8", "upstream_error"),
        ("surrogate", "upstream_error"),
        ("wrong-types", "upstream_error"),
        ("deep", "upstream_error"),
        ("nan", "upstream_error"),
        ("negative-usage", "upstream_error"),
        ("filtered", "upstream_error"),
        ("key-in-text", "upstream_error"),
        ("endless-line", "upstream_error"),
        ("silent-in-answer", "deadline_exceeded"),
    ],
)
def test_r14_a_fault_after_the_first_byte_is_an_error_frame_and_not_tried_again(
    outcomes: dict[str, Outcome], mode: str, code: str
) -> None:
    """Fails when a cut answer looks whole, or a client gets the start of an answer twice."""
    outcome = outcomes[mode]
    assert (outcome.status, outcome.error["code"], outcome.asked) == (200, code, 1)
    assert "half an" in outcome.body
    assert "[DONE]" not in outcome.body


@pytest.mark.parametrize("mode", ["comment-drip", "never-ending"])
def test_r14_what_does_not_end_is_ended(outcomes: dict[str, Outcome], mode: str) -> None:
    """Fails when an upstream can hold a place in the batch for as long as it likes."""
    outcome = outcomes[mode]
    assert json.loads(outcome.frames[-2])["choices"][0]["finish_reason"] == "length"
    assert outcome.frames[-1] == "[DONE]"


def test_r14_every_mode_is_judged(outcomes: dict[str, Outcome], faulty: Faulty, front: Served) -> None:
    """Fails when the key or a prompt is echoed, a redirect is followed, or the service does not live through it all."""
    assert len(MODES) >= 30
    said = "".join(outcome.headers + outcome.body for outcome in outcomes.values()) + front.log()
    assert KEY not in said
    assert SECRET not in said
    assert faulty.others == []
    assert front.readyz() == 200
    assert "Traceback" not in front.log()


def test_a_wait_is_passed_on_and_the_field_at_fault_named(outcomes: dict[str, Outcome]) -> None:
    """Fails when clients hammer an upstream that asked for patience, or cannot tell which parameter it refused."""
    assert "'retry-after': '30'" in outcomes["busy-for-long"].headers.lower()
    assert outcomes["unsupported"].error["param"] == "temperature"
    assert outcomes["bad-request"].error["param"] is None


def test_usage_and_cost_are_the_upstreams(front: Served) -> None:
    """Fails when tokens are counted here instead, or the cost that an upstream tells is lost."""
    usage = ask(front, "whole", stream=False).json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (7, 3, 10)
    assert usage["cost"] == COST
    assert usage["prompt_tokens_details"]["cached_tokens"] == 4
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 1}
    assert ask(front, "whole", stream=False, n=3).json()["usage"]["cost"] == pytest.approx(3 * COST)
    metrics = requests.get(f"{front.url}/metrics", timeout=10).text
    assert 'vllm:prompt_tokens_total{engine="0",model_name="upstream"} 0.0' not in metrics


@pytest.mark.parametrize("mode", ["cut", "silent-in-answer", "not-json"])
def test_a_cut_answer_in_one_piece_is_no_answer(front: Served, mode: str) -> None:
    """Fails when a request without `stream` gets half an answer with status 200."""
    response = ask(front, mode, stream=False)
    assert response.status_code in (502, 504)


def test_a_client_that_leaves_cancels_the_upstreams_work(front: Served, faulty: Faulty) -> None:
    """Fails when an upstream goes on generating, and charging, for nobody: before the first byte or after it."""
    for mode in ("head-drip", "never-ending"):
        asked = faulty.asked[mode]
        faulty.left[mode].clear()
        connection = HTTPConnection(front.url.removeprefix("http://"), timeout=30)
        body = json.dumps({"messages": [{"role": "user", "content": f"{mode} mode"}]})
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        while faulty.asked[mode] == asked:
            time.sleep(0.01)
        connection.close()
        assert faulty.left[mode].wait(1.5), mode


@pytest.mark.parametrize(
    ("path", "more", "param"),
    [
        ("chat/completions", {"top_k": 5}, "top_k"),
        ("chat/completions", {"context_policy": "keep_recent"}, "context_policy"),
        ("../tokenize", {}, "messages"),
    ],
)
def test_what_an_upstream_may_not_honour_is_refused(front: Served, path: str, more: dict[str, Any], param: str) -> None:
    """Fails when a parameter that many servers drop silently is passed on as if it were honoured."""
    body = {"messages": [{"role": "user", "content": "whole mode"}], **more}
    response = requests.post(f"{front.url}/v1/{path}", json=body, timeout=10)
    assert response.status_code == 400
    assert (response.json()["error"]["code"], response.json()["error"]["param"]) == ("unsupported_parameter", param)


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
    return [event async for event in engine.generate(messages, sampling or Sampling())]


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


async def test_draining_lets_answers_finish_and_then_ends_them() -> None:
    """Fails when a stop cuts an answer that would have finished, or waits for one that never will."""

    def slow(_: bytes, say: Say) -> None:
        say(STREAM_HEAD + chunked(text("slow")))
        silence(say)

    with scripted(chat_service(slow)) as server:
        async with connected(server.url, Patience()) as engine:
            events = engine.generate(HELLO, Sampling())
            await anext(events)
            draining = asyncio.create_task(engine.drain(0.2))
            await asyncio.sleep(0)
            with pytest.raises(ParleyError) as refused:
                await answer(engine)
            assert refused.value.code is ErrorCode.DRAINING
            last = [event async for event in events][-1]
            assert isinstance(last, Failure)
            assert last.code is ErrorCode.DRAINING
            assert await draining == 1


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


async def test_an_upstream_without_counts_gives_an_answer_without_them() -> None:
    """Fails when tokens that nobody counted are made up, or their absence loses the answer."""
    with scripted(chat_service(streams(text("hi", "stop") + DONE))) as server:
        async with connected(server.url) as engine:
            finish = (await answer(engine))[-1]
    assert isinstance(finish, Finish)
    assert (finish.prompt_tokens, finish.completion_tokens, finish.usage) == (0, 0, {})


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
