"""The names, labels and buckets of vLLM's metrics, on the embedded model."""

import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Served

SECONDS = [0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680]
FIRST_TOKEN = [
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)
]
TOKEN = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80]
TOKENS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000]
HISTOGRAMS: dict[str, list[float]] = {
    "time_to_first_token_seconds": FIRST_TOKEN,
    "inter_token_latency_seconds": TOKEN,
    "request_time_per_output_token_seconds": TOKEN,
    "e2e_request_latency_seconds": SECONDS,
    "request_queue_time_seconds": SECONDS,
    "request_inference_time_seconds": SECONDS,
    "request_prefill_time_seconds": SECONDS,
    "request_decode_time_seconds": SECONDS,
    "request_prompt_tokens": TOKENS,
    "request_generation_tokens": TOKENS,
}
OTHERS = {
    **dict.fromkeys(["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"], "gauge"),
    **dict.fromkeys(["prompt_tokens", "generation_tokens", "request_success"], "counter"),
    **dict.fromkeys(["prefix_cache_queries", "prefix_cache_hits", "admission_rejections"], "counter"),
}


def test_names_types_labels_and_buckets_are_vllm_s(service: Served) -> None:
    """Fails when a board or an alert made for vLLM finds a series missing, of another type, or cut otherwise."""
    body = {"messages": [{"role": "user", "content": "Who is Batman?"}], "max_tokens": 8}
    assert requests.post(f"{service.url}/v1/chat/completions", json=body, timeout=60).ok
    text = requests.get(f"{service.url}/metrics", timeout=10).text
    families = {family.name.removeprefix("vllm:"): family for family in text_string_to_metric_families(text)}
    assert {name: families[name].type for name in OTHERS} == OTHERS
    for name, bounds in HISTOGRAMS.items():
        family = families[name]
        buckets = [sample.labels for sample in family.samples if sample.name.endswith("_bucket")]
        assert family.type == "histogram"
        assert [float(labels["le"]) for labels in buckets] == [*bounds, float("inf")], name
        assert all((labels["model_name"], labels["engine"]) == ("pocket", "0") for labels in buckets)
    reasons = {sample.labels["finished_reason"] for sample in families["request_success"].samples}
    assert {"stop", "length", "abort", "error"} <= reasons
    rejected = {sample.labels["reason"] for sample in families["admission_rejections"].samples}
    assert "max_num_queued_reqs" in rejected
