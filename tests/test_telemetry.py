"""What the service tells of itself: metrics with bounded labels, and one access record a request."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from prometheus_client import CollectorRegistry

from parley.api.observed import Observed
from parley.engine.engine import Delta, Finish
from parley.telemetry.metrics import EngineMetrics, Load
from parley.telemetry.record import Head, Progress, Record
from tests.conftest import Served, serve
from tests.scrape import only_record, scrape, total, until

COMPLETIONS = "/v1/chat/completions"
MODEL = {"model_name": "echo", "engine": "0"}

GAUGES = ["num_requests_running", "num_requests_waiting"]
COUNTERS = ["prompt_tokens", "generation_tokens", "request_success", "prefix_cache_queries", "prefix_cache_hits"]
HISTOGRAMS = [
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_inference_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "request_prompt_tokens",
    "request_generation_tokens",
]


@pytest.fixture(scope="module")
def narrow_service() -> Iterator[Served]:
    """The echo engine with one place in the batch and one in the queue."""
    with serve({"PARLEY_ENGINE": "echo", "PARLEY_MAX_BATCH": "1", "PARLEY_MAX_QUEUE": "1"}) as served:
        yield served


def chat(served: Served, text: str, headers: dict[str, str] | None = None, **more: Any) -> requests.Response:
    body = {"messages": [{"role": "user", "content": text}], **more}
    return requests.post(f"{served.url}{COMPLETIONS}", json=body, headers=headers, timeout=60)


def test_a_cache_that_is_not_counted_has_no_figures(service: Served) -> None:
    """Fails when an engine that does not tell its cache hits is shown as one that looked up and found nothing."""
    usage = chat(service, "Who is Batman?", max_tokens=4).json()["usage"]
    assert usage["prompt_tokens_details"] == {"dropped_messages": 0, "dropped_tokens": 0}
    counts = scrape(service)
    assert total(counts, "vllm:prompt_tokens_total") > 0
    assert total(counts, "vllm:prefix_cache_queries_total") == total(counts, "vllm:prefix_cache_hits_total") == 0


def test_the_names_of_vllm_count_what_the_usage_says(echo_service: Served) -> None:
    """Fails when a dashboard made for vLLM shows nothing or shows wrong numbers."""
    before = scrape(echo_service)
    usage = chat(echo_service, "one two three").json()["usage"]
    after = scrape(echo_service)

    def grown(name: str, **labels: str) -> float:
        return total(after, f"vllm:{name}", **MODEL, **labels) - total(before, f"vllm:{name}", **MODEL, **labels)

    assert grown("prompt_tokens_total") == grown("prefix_cache_queries_total") == usage["prompt_tokens"]
    assert grown("generation_tokens_total") == usage["completion_tokens"]
    assert grown("request_success_total", finished_reason="stop") == 1
    assert [grown(f"{name}_count") for name in HISTOGRAMS if name != "inter_token_latency_seconds"] == [1] * 9
    assert grown("request_prompt_tokens_sum") == usage["prompt_tokens"]
    names = {name for name, labels in after if labels >= MODEL.items()}
    assert names >= {f"vllm:{name}" for name in GAUGES} | {f"vllm:{name}_total" for name in COUNTERS}


def test_every_token_but_the_first_has_a_latency(echo_service: Served) -> None:
    """Fails when tokens that arrive together are counted once, or the time between them is not shared out."""
    before = scrape(echo_service)
    began = time.monotonic()
    usage = chat(echo_service, "slow a b c d e f g").json()["usage"]
    seconds = time.monotonic() - began
    after = scrape(echo_service)
    name = "vllm:inter_token_latency_seconds"
    first_wakeup = len("slow")
    assert total(after, f"{name}_count") - total(before, f"{name}_count") == usage["completion_tokens"] - first_wakeup
    assert 0.2 < total(after, f"{name}_sum") - total(before, f"{name}_sum") < seconds


def test_tokens_that_were_seen_stay_counted() -> None:
    """Fails when an upstream that does not count its tokens makes an answer cost nothing, or a counter go down."""
    gaps: list[int] = []
    observed = Observed(Progress(Head("", "", "", 0.0), lambda _, tokens: gaps.append(tokens)), 0)
    for event in (Delta(0, "a", 1), Delta(0, "b", 2), Finish(0, "", "stop", 0, 0, None)):
        observed.see(event)
    assert (observed.tokens, gaps) == (3, [2])
    observed.see(Finish(0, "", "stop", 7, 5, None))
    assert (observed.tokens, observed.prompt_tokens, gaps) == (5, 7, [2, 2])
    observed.see(Finish(0, "", "stop", None, None, None))
    assert (observed.tokens, observed.prompt_tokens, gaps) == (5, None, [2, 2])


def test_who_waits_is_told_apart_from_who_runs(narrow_service: Served) -> None:
    """Fails when the gauges, the queue's time or the refusals do not show that the batch is full."""
    ids = [f"narrow-{number}" for number in range(2)]
    threads = []
    for number, request_id in enumerate(ids):
        arguments = (narrow_service, "slow " + "word " * 15, {"x-request-id": request_id})
        threads.append(threading.Thread(target=chat, args=arguments))
        threads[-1].start()
        until(lambda: total(scrape(narrow_service), "vllm:num_requests_running") == 1)
        until(lambda: total(scrape(narrow_service), "vllm:num_requests_waiting") == number)  # noqa: B023 - waited for
    assert chat(narrow_service, "no room").status_code == 429
    for thread in threads:
        thread.join()
    series = scrape(narrow_service)
    assert total(series, "vllm:admission_rejections_total", model_name="echo", reason="max_num_queued_reqs") == 1
    assert total(series, "vllm:num_requests_running") == total(series, "vllm:num_requests_waiting") == 0
    first, second = (only_record(narrow_service, request_id) for request_id in ids)
    assert first["queue_time"] < 0.1
    assert second["queue_time"] > 0.3


def test_labels_do_not_grow_with_what_clients_make_up(echo_service: Served) -> None:
    """Fails when anybody can fill the memory of the service and of its monitoring by asking for new paths."""
    for warm in ("GET", "POST", "DELETE"):
        requests.request(warm, f"{echo_service.url}/nowhere", json={}, timeout=10)
    requests.get(f"{echo_service.url}/v1/models/first", timeout=10)
    chat(echo_service, "hello", model="first", headers={"x-request-id": "first"})
    scrape(echo_service)
    before = scrape(echo_service).keys()
    with requests.Session() as session:
        for number in range(200):
            session.get(f"{echo_service.url}/nowhere/{number}?q={number}", timeout=10)
            session.post(f"{echo_service.url}/{number}/chat", json={}, timeout=10)
            session.delete(f"{echo_service.url}/static_content{number}", json={}, timeout=10)
            session.get(f"{echo_service.url}/v1/models/made-up/{number}", timeout=10)
    chat(echo_service, "hello", model="made-up", headers={"x-request-id": "made-up"})
    assert scrape(echo_service).keys() == before


def test_bentomls_own_series_stay(echo_service: Served) -> None:
    """Fails when a dashboard or an alert that was made for BentoML loses its series."""
    before = scrape(echo_service)
    requests.post(f"{echo_service.url}/chat", json={"user_input": "hello"}, timeout=10)
    after = scrape(echo_service)
    service = {"service_name": "parley", "service_version": "not available", "runner_name": "parley"}
    for name in ("request_total", "request_duration_seconds_count"):
        labels = {**service, "endpoint": "/chat", "http_response_code": "200"}
        series = f"bentoml_service_{name}"
        assert total(after, series, **labels) - total(before, series, **labels) == 1
    assert total(after, "bentoml_service_request_in_progress", **service, endpoint="/chat") == 0
    assert total(after, "bentoml_service_last_request_timestamp_seconds", **service) > time.time() - 60


def test_another_service_of_the_same_user_changes_nothing(echo_service: Served) -> None:
    """Fails when services share files of metrics, which each start empties, as BentoML's do."""
    chat(echo_service, "hello")
    before = scrape(echo_service)
    with serve({"PARLEY_ENGINE": "echo"}) as other:
        assert total(scrape(other), "vllm:generation_tokens_total") == 0
        after = scrape(echo_service)
    tokens = "vllm:generation_tokens_total"
    assert total(after, tokens) == total(before, tokens) > 0


@pytest.mark.parametrize("stream", [False, True])
def test_one_record_a_request(echo_service: Served, stream: bool) -> None:
    """Fails when a request is not logged, logged twice, or without what a bill or a search needs."""
    request_id = f"record-{stream}"
    chat(echo_service, "one two", stream=stream, headers={"x-request-id": request_id})
    record = only_record(echo_service, request_id)
    assert record["route"] == COMPLETIONS
    assert (record["method"], record["status"], record["code"], record["key"]) == ("POST", 200, None, None)
    assert (record["model"], record["finish_reason"]) == ("echo", "stop")
    assert (record["prompt_tokens"], record["completion_tokens"]) == (7, 7)
    assert 0 <= record["queue_time"] <= record["time_to_first_token"] <= record["duration"]


def test_a_client_that_left_is_499_and_an_aborted_answer(echo_service: Served) -> None:
    """Fails when answers that nobody read look like answers that were read."""
    before = total(scrape(echo_service), "vllm:request_success_total", finished_reason="abort")
    body = {"messages": [{"role": "user", "content": "slow " + "word " * 200}], "stream": True}
    headers = {"x-request-id": "left"}
    url = f"{echo_service.url}{COMPLETIONS}"
    with requests.post(url, json=body, headers=headers, stream=True, timeout=60) as response:
        next(response.iter_content(64))
    record = only_record(echo_service, "left")
    assert (record["status"], record["code"], record["finish_reason"]) == (499, "client_closed_request", "abort")
    assert total(scrape(echo_service), "vllm:request_success_total", finished_reason="abort") == before + 1


def test_an_answer_that_outlives_its_client_is_counted(echo_service: Served) -> None:
    """Fails when tokens for a client that has left, but may ask again, are in no record and no metric."""
    before = total(scrape(echo_service), "vllm:generation_tokens_total")
    text = "slow " + "word " * 20
    body = {"messages": [{"role": "user", "content": text}], "stream": True}
    headers = {"x-request-id": "outlived", "Idempotency-Key": "outlived"}
    with requests.post(
        f"{echo_service.url}{COMPLETIONS}", json=body, headers=headers, stream=True, timeout=60
    ) as response:
        next(response.iter_content(64))
    record = only_record(echo_service, "outlived")
    assert (record["status"], record["finish_reason"], record["completion_tokens"]) == (499, "stop", len(text))
    assert total(scrape(echo_service), "vllm:generation_tokens_total") == before + len(text)


def test_a_request_without_an_answer_is_told_by_its_error(echo_service: Served) -> None:
    """Fails when what was refused leaves no trace, or a path that a client made up gets into the log."""
    for path, status, code, route in [
        (COMPLETIONS, 400, "missing_required_parameter", COMPLETIONS),
        ("/nowhere/zebra", 404, "not_found", "unknown"),
    ]:
        response = requests.post(f"{echo_service.url}{path}", json={}, timeout=10)
        record = only_record(echo_service, response.headers["x-request-id"])
        assert response.status_code == status
        assert (record["status"], record["code"], record["route"]) == (status, code, route)
        assert "finish_reason" not in record
    assert "zebra" not in echo_service.log()


def test_only_what_asked_for_an_answer_counts_as_turned_away() -> None:
    """Fails when a page that lists the models while one is loaded makes an alarm ring for refused requests."""
    registry = CollectorRegistry()
    metrics = EngineMetrics(registry, "m", lambda: Load(0, 0, False, 0))
    for method, route in (("GET", "/v1/models"), ("GET", "/readyz"), ("POST", COMPLETIONS)):
        metrics(Record(Head("id", method, route, 0.0), 0.1, 503, "engine_unavailable", None, ()))
    labels = {"model_name": "m", "reason": "engine_unavailable"}
    assert registry.get_sample_value("vllm:admission_rejections_total", labels) == 1


def test_an_id_that_could_forge_a_line_is_replaced(echo_service: Served) -> None:
    """Fails when a client can write its own text into the log by way of the request id."""
    response = chat(echo_service, "hello", headers={"x-request-id": 'a"} {"forged": 1'})
    assert "forged" not in response.headers["x-request-id"]
    only_record(echo_service, response.headers["x-request-id"])
