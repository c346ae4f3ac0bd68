"""The OpenTelemetry exporter: OTLP over HTTP, set by OpenTelemetry's own `OTEL_*` variables and nothing else."""

import threading
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

from parley.telemetry.record import Record

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"
HTTP = "http/protobuf"
PACKAGE = "opentelemetry-exporter-otlp-proto-http>=1.40,<2"

LAST_SECONDS = 1.5
"""How long a stop waits for a collector to take what is left."""


class ExporterError(Exception):
    """The exporter that was asked for cannot be had; the message is one line with the setting and the way out."""


def exporter_is_set(environ: Mapping[str, str]) -> bool:
    """Whether traces and metrics are to be exported.

    Raises:
        ExporterError: for a protocol other than HTTP, or when the exporter's package is not installed.
    """
    endpoint = environ.get(ENDPOINT)
    if not endpoint:
        return False
    if (protocol := environ.get(PROTOCOL, HTTP)) != HTTP:
        raise ExporterError(f"{PROTOCOL}={protocol}: only {HTTP} is supported, which collectors take on port 4318")
    if find_spec("opentelemetry.exporter") is None:
        raise ExporterError(f"{ENDPOINT}={endpoint} needs an exporter: pip install '{PACKAGE}'")
    return True


class Exporter:
    """Sends traces and metrics to a collector; the SDK reads headers, timeouts, sampler and intervals by itself."""

    def __init__(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from parley.telemetry.traces import Durations, Spans

        resource = described()
        self._tracer = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._tracer.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        reader = PeriodicExportingMetricReader(OTLPMetricExporter())
        self._meter = MeterProvider([reader], resource, shutdown_on_exit=False)
        self._sinks: list[Callable[[Record], None]] = [Spans(self._tracer), Durations(self._meter)]

    def __call__(self, record: Record) -> None:
        """Takes one request in; it is sent from a thread of the SDK's."""
        for sink in self._sinks:
            sink(record)

    def close(self) -> None:
        """Sends what is left. A collector that does not answer cannot hold up a stop."""
        last = [threading.Thread(target=end.shutdown, daemon=True) for end in (self._tracer, self._meter)]
        for thread in last:
            thread.start()
        for thread in last:
            thread.join(LAST_SECONDS)


def described() -> "Resource":
    """What all that is sent says of its sender: `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, or our own name."""
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource

    resource = Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        return resource.merge(Resource({SERVICE_NAME: "parley"}))
    return resource


def create_exporter(environ: Mapping[str, str]) -> Exporter | None:
    """The exporter that the environment sets; None, and nothing of it imported, where it sets none.

    Raises:
        ExporterError: as `exporter_is_set`.
    """
    return Exporter() if exporter_is_set(environ) else None
