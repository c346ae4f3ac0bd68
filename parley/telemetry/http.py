"""Prometheus: BentoML's own `bentoml_service_request_*` series, with labels that clients cannot make up.

BentoML's layer labels by the path that was asked for, so that every unknown path adds series for ever; it keeps them in
files of one folder for all services of a user, which each start of any of them empties; and it does not count streams
whose client left. So it is switched off, and its series are kept here under the same names, labels and buckets.
"""

from dataclasses import astuple, dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from parley.telemetry.record import Record

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 180)
"""BentoML's default buckets."""

_PREFIX = "bentoml_service_"


@dataclass(frozen=True)
class Names:
    """The labels that every series of BentoML's carries."""

    service_name: str
    service_version: str
    runner_name: str


class RequestMetrics:
    """Series of HTTP requests, by route and status."""

    def __init__(self, registry: CollectorRegistry, names: Names) -> None:
        self._names = astuple(names)
        common = ("service_name", "service_version", "runner_name")
        routed = (*common, "endpoint")
        answered = (*routed, "http_response_code")
        self._total = Counter(f"{_PREFIX}request", "Requests that ended.", answered, registry=registry)
        self._seconds = Histogram(
            f"{_PREFIX}request_duration_seconds", "How long they took.", answered, registry=registry, buckets=SECONDS
        )
        self._in_progress = Gauge(f"{_PREFIX}request_in_progress", "Requests under way.", routed, registry=registry)
        self._last = Gauge(
            f"{_PREFIX}last_request_timestamp_seconds", "When the last request came.", common, registry=registry
        )

    def began(self, route: str) -> None:
        """A request has arrived."""
        self._in_progress.labels(*self._names, route).inc()
        self._last.labels(*self._names).set_to_current_time()

    def __call__(self, record: Record) -> None:
        """A request has ended."""
        labels = (*self._names, record.head.route)
        self._in_progress.labels(*labels).dec()
        self._total.labels(*labels, str(record.status)).inc()
        self._seconds.labels(*labels, str(record.status)).observe(record.duration)
