"""Observer: takes each request's record and hands it to every sink."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, generate_latest

from parley.telemetry.exporter import Exporter
from parley.telemetry.http import Names, RequestMetrics
from parley.telemetry.logs import log_access
from parley.telemetry.metrics import EngineMetrics, Load
from parley.telemetry.record import Head, Progress, Record, begin

Sink = Callable[[Record], None]


class Observer:
    """What a service tells of its requests.

    Args:
        model: the served model's name.
        names: the labels of BentoML's series.
        load: asked at each scrape.
        exporter: where traces go, if they are wanted.
    """

    def __init__(self, model: str, names: Names, load: Callable[[], Load], exporter: Exporter | None) -> None:
        self._registry = CollectorRegistry()
        self._requests = RequestMetrics(self._registry, names)
        self._answers = EngineMetrics(self._registry, model, load)
        self._exporter = exporter
        self._sinks: list[Sink] = [self._requests, self._answers, log_access, *([exporter] if exporter else [])]

    def began(self, head: Head) -> Progress:
        """A request has arrived; the code that runs in this context works for it from here on."""
        self._requests.began(head.route)
        progress = Progress(head, self._answers.gaps.observe)
        begin(progress)
        return progress

    def ended(self, progress: Progress) -> None:
        """A request has ended."""
        record = progress.record(time.monotonic())
        for sink in self._sinks:
            sink(record)

    def metrics(self) -> bytes:
        """Everything in Prometheus' text format 0.0.4.

        Never OpenMetrics, for which Prometheus asks first: prometheus_client writes `vllm_` instead of `vllm:` there.
        """
        return generate_latest(self._registry)

    def close(self) -> None:
        """Exports what is left; takes up to two seconds."""
        if self._exporter:
            self._exporter.close()
