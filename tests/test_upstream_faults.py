"""A service in front of a stand-in that does whatever an upstream should not (R14), as its clients see it."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

import pytest
import requests

from tests.conftest import Served, serve
from tests.faulty import COST, KEY, MODES, Faulty
from tests.scrape import scrape, total
from tests.scripted import scripted

SECRET = "the planted prompt"


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
    [
        "whole",
        "carriage-returns",
        "byte-by-byte",
        "no-done",
        "no-end",
        "drip-after-end",
        "reset-after-end",
        "cut-after-end",
        "uncounted",
        "comments",
        "busy-once",
        "reset-once",
        "empty-once",
        "never-ending-after-done",
    ],
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
        ("too-long-flat", 400, "context_length_exceeded", 1),
        ("too-long-sglang", 400, "context_length_exceeded", 1),
        ("too-long-llama-cpp", 400, "context_length_exceeded", 1),
        ("not-utf-8-refusal", 400, "invalid_value", 1),
        ("silly-date", 503, "engine_unavailable", 3),
        ("unsupported", 400, "unsupported_parameter", 1),
        ("unprocessable", 400, "invalid_value", 1),
        ("unauthorized", 502, "upstream_refused", 1),
        ("forbidden", 502, "upstream_refused", 1),
        ("not-found", 502, "upstream_refused", 1),
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


STRANGE_MODES = {"not-json", "not-utf-8", "surrogate", "wrong-types", "deep", "nan", "negative-usage", "endless-line"}


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
        ("filtered", "upstream_refused"),
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
    assert ("not a chat completion" in outcome.error["message"]) == (mode in STRANGE_MODES)
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


def test_what_stays_wrong_at_the_upstream_asks_for_no_retry(front: Served) -> None:
    """Fails when SDKs ask three times for what a wrong key, a wrong model or a filter will refuse again."""
    for mode in ("unauthorized", "forbidden", "not-found", "filtered"):
        refused = ask(front, mode, stream=False)
        assert (refused.status_code, refused.headers.get("x-should-retry")) == (502, "false"), mode
    assert "x-should-retry" not in ask(front, "cut", stream=False).headers


def test_what_nobody_counted_is_told_by_nobody(front: Served) -> None:
    """Fails when a client of an upstream that does not count is told that its answer took no tokens."""
    before = scrape(front)
    assert ask(front, "uncounted", stream=False).json()["usage"] is None
    assert ask(front, "uncounted", stream=False, n=2).json()["usage"] is None
    streamed = ask(front, "uncounted", stream_options={"include_usage": True}).text
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)
    assert all(chunk["choices"] for chunk in chunks)
    history = {"history": [{"role": "user", "content": "uncounted mode"}]}
    assert requests.post(f"{front.url}/chat", json=history, timeout=30).json()["token_usage"] is None
    name = "vllm:request_prompt_tokens_count"
    assert total(scrape(front), name) == total(before, name)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("answers", [1, 2])
def test_a_refusal_says_as_much_to_who_asks_for_several_answers(front: Served, answers: int, stream: bool) -> None:
    """Fails when the time to come back, or the parameter at fault, is lost on the way of several answers."""
    busy = ask(front, "busy-for-long", stream, n=answers)
    assert (busy.status_code, busy.headers["retry-after"]) == (429, "30")
    refused = ask(front, "unsupported", stream, n=answers, temperature=1)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "temperature")


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


def test_what_is_refused_is_not_listed(front: Served) -> None:
    """Fails when `GET /v1/models` tells of a parameter that is then refused."""
    (model,) = requests.get(f"{front.url}/v1/models", timeout=10).json()["data"]
    assert "n" in model["parameters"]
    assert "context_policy" not in model["parameters"]


def test_a_conversation_too_long_is_told_in_words_that_clients_know(front: Served) -> None:
    """Fails when LiteLLM cannot tell it from other bad requests, and does not fall back to a longer model."""
    body = {"messages": [{"role": "user", "content": "too-long-in-words mode"}]}
    told = requests.post(f"{front.url}/v1/chat/completions", json=body, timeout=10).json()
    assert "is longer than the model's context length" in told["error"]["message"]
