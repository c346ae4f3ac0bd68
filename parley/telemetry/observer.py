"""Observer: takes each request's record and hands it to every sink."""

import time
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

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
        exported: sinks beside the metrics and the access log.
    """

    def __init__(self, model: str, names: Names, load: Callable[[], Load], exported: Sequence[Sink] = ()) -> None:
        self._registry = CollectorRegistry()
        self._requests = RequestMetrics(self._registry, names)
        self._answers = EngineMetrics(self._registry, model, load)
        self._sinks: list[Sink] = [self._requests, self._answers, log_access, *exported]

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

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """Everything in Prometheus' format, and that format's media type.

        Args:
            accept: the `Accept` header of who asks.
        """
        encode, media_type = choose_encoder(accept)
        return encode(self._registry), media_type
