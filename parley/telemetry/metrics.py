"""Prometheus: vLLM's metric names, labels and buckets, so that dashboards made for it show this service, too.

Names and buckets are those of vLLM 0.33 (`vllm/v1/metrics/loggers.py` and `buckets.py`). `engine` is the engine's
index, as there: this service has one. What vLLM has no name for begins with `parley:`.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from parley.contract.errors import ErrorCode
from parley.telemetry.record import FINISH_REASONS, AnswerRecord, Record

LABELS = ("model_name", "engine")

# fmt: off
REQUEST_SECONDS = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
FIRST_TOKEN_SECONDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560
)
# fmt: on
TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
TOKENS = tuple(mantissa * 10**exponent for exponent in range(6) for mantissa in (1, 2, 5))
"""vLLM ends this series at the model's context length, which is not known before the model is loaded."""

REJECTIONS = {
    ErrorCode.QUEUE_FULL: "max_num_queued_reqs",
    ErrorCode.RATE_LIMIT_EXCEEDED: "rate_limit",
    ErrorCode.DEADLINE_EXCEEDED: "deadline",
    ErrorCode.DRAINING: "draining",
    ErrorCode.ENGINE_UNAVAILABLE: "engine_unavailable",
}
"""Why a request was turned away at the door; vLLM's word where it has one."""


@dataclass(frozen=True)
class Load:
    """How busy the service is, now."""

    running: int
    waiting: int
    ready: bool
    restarts: int
    cache_usage: float | None = None
    """From 0 to 1; None where the engine does not tell."""


class EngineMetrics:
    """Counters and histograms of answers.

    Args:
        registry: where they are shown.
        model: the served model's name.
        load: asked at each scrape.
    """

    def __init__(self, registry: CollectorRegistry, model: str, load: Callable[[], Load]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.gaps = Gaps(model)
        registry.register(self.gaps)
        registry.register(Now(model, load))
        self._counters = {
            name: Counter(f"vllm:{name}", text, LABELS, registry=registry).labels(model, "0")
            for name, text in _COUNTERS.items()
        }
        self._histograms = {
            name: Histogram(f"vllm:{name}", text, LABELS, registry=registry, buckets=buckets).labels(model, "0")
            for name, (text, buckets) in _HISTOGRAMS.items()
        }
        finished = Counter(
            "vllm:request_success", "Answers that ended.", (*LABELS, "finished_reason"), registry=registry
        )
        self._finished = {reason: finished.labels(model, "0", reason) for reason in FINISH_REASONS}
        rejected = Counter(
            "vllm:admission_rejections", "Requests turned away.", ("model_name", "reason"), registry=registry
        )
        self._rejected: dict[str, Counter] = {
            code: rejected.labels(model, reason) for code, reason in REJECTIONS.items()
        }

    def __call__(self, record: Record) -> None:
        """Takes one request in."""
        # What is asked with GET, probes and lists, wants no place in the batch.
        if record.code in self._rejected and not record.answers and record.head.method == "POST":
            self._rejected[record.code].inc()
        for answer in record.answers:
            self._count(answer)
            self._time(record, answer)

    def _count(self, answer: AnswerRecord) -> None:
        self._finished[answer.finish_reason].inc()
        self._counters["generation_tokens"].inc(answer.completion_tokens)
        if answer.prompt_tokens is None:
            return
        self._counters["prompt_tokens"].inc(answer.prompt_tokens)
        if answer.cached_tokens is not None:
            self._counters["prefix_cache_queries"].inc(answer.prompt_tokens)
            self._counters["prefix_cache_hits"].inc(answer.cached_tokens)

    def _time(self, record: Record, answer: AnswerRecord) -> None:
        observed = {
            "time_to_first_token_seconds": record.time_to_first_token(answer),
            "e2e_request_latency_seconds": record.duration,
            "request_queue_time_seconds": answer.queue_time,
            "request_prefill_time_seconds": answer.prefill_time,
            "request_decode_time_seconds": answer.decode_time,
            "request_inference_time_seconds": answer.inference_time,
            "request_time_per_output_token_seconds": answer.time_per_output_token,
            "request_prompt_tokens": answer.prompt_tokens,
            "request_generation_tokens": answer.completion_tokens,
        }
        for name, value in observed.items():
            if value is not None:
                self._histograms[name].observe(value)


_COUNTERS = {
    "prompt_tokens": "Prompt tokens of answers that were begun.",
    "generation_tokens": "Generated tokens.",
    "prefix_cache_queries": "Prompt tokens of which the engine tells whether they were in the prefix cache.",
    "prefix_cache_hits": "Prompt tokens that were found in the prefix cache.",
}

_HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "time_to_first_token_seconds": ("From the request's arrival to its first token.", FIRST_TOKEN_SECONDS),
    "e2e_request_latency_seconds": ("From the request's arrival to its end.", REQUEST_SECONDS),
    "request_queue_time_seconds": ("Waiting for a place in the batch.", REQUEST_SECONDS),
    "request_prefill_time_seconds": ("From a place in the batch to the first token.", REQUEST_SECONDS),
    "request_decode_time_seconds": ("From the first token to the last.", REQUEST_SECONDS),
    "request_inference_time_seconds": ("From a place in the batch to the last token.", REQUEST_SECONDS),
    "request_time_per_output_token_seconds": ("Mean seconds between tokens of one answer.", TOKEN_SECONDS),
    "request_prompt_tokens": ("Prompt tokens of one answer.", TOKENS),
    "request_generation_tokens": ("Generated tokens of one answer.", TOKENS),
}


class Gaps(Collector):
    """Inter-token latency, weighted by tokens.

    A histogram of prometheus_client takes one observation at a time; a wake-up brings many tokens at once, and there
    are thousands of wake-ups a second. All calls of `observe` come from the event loop's thread.
    """

    def __init__(self, model: str) -> None:
        self._labels = (model, "0")
        self._counts = [0] * (len(TOKEN_SECONDS) + 1)
        self._seconds = 0.0

    def observe(self, seconds: float, tokens: int) -> None:
        """Counts `tokens` tokens, each of which came `seconds` after the one before it."""
        self._counts[bisect_left(TOKEN_SECONDS, seconds)] += tokens
        self._seconds += seconds * tokens

    def collect(self) -> Iterator[Metric]:
        """The histogram, now."""
        family = HistogramMetricFamily("vllm:inter_token_latency_seconds", "Seconds between tokens.", labels=LABELS)
        total, buckets = 0, []
        for bound, count in zip((*map(str, map(float, TOKEN_SECONDS)), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        family.add_metric(self._labels, buckets, self._seconds)
        yield family


class Now(Collector):
    """What is asked at each scrape and not counted along the way."""

    def __init__(self, model: str, load: Callable[[], Load]) -> None:
        self._labels = (model, "0")
        self._load = load

    def collect(self) -> Iterator[Metric]:
        """The gauges, now."""
        load = self._load()
        yield self._gauge("vllm:num_requests_running", "Answers with a place in the batch.", load.running)
        yield self._gauge("vllm:num_requests_waiting", "Answers that wait for a place in the batch.", load.waiting)
        if load.cache_usage is not None:
            yield self._gauge("vllm:kv_cache_usage_perc", "KV cache in use; 1 is all of it.", load.cache_usage)
        yield self._gauge("parley:ready", "1 when answers can be had.", int(load.ready))
        restarts = CounterMetricFamily("parley:engine_restarts", "Restarts of the engine process.", labels=LABELS)
        restarts.add_metric(self._labels, load.restarts)
        yield restarts

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=LABELS)
        family.add_metric(self._labels, value)
        return family
