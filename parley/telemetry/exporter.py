"""The OpenTelemetry exporter: OTLP over HTTP, set by OpenTelemetry's own `OTEL_*` variables and nothing else."""

import threading
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

from parley.startup import one_line
from parley.telemetry.record import Record

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"
TRACES = "OTEL_TRACES_EXPORTER"
METRICS = "OTEL_METRICS_EXPORTER"
OTLP = "otlp"
NONE = "none"
HTTP = "http/protobuf"
PACKAGE = "opentelemetry-exporter-otlp-proto-http>=1.40,<2"

LAST_SECONDS = 1.5
"""How long a stop waits for a collector to take what is left."""


class ExporterError(Exception):
    """The exporter that was asked for cannot be had; the message is one line with the setting and the way out."""


def exporter_is_set(environ: Mapping[str, str]) -> bool:
    """Whether traces and metrics are to be exported.

    Raises:
        ExporterError: for another protocol or exporter, or when the exporter's package is not installed.
    """
    endpoint = environ.get(ENDPOINT)
    if not endpoint:
        return False
    if (protocol := environ.get(PROTOCOL) or HTTP) != HTTP:
        raise ExporterError(f"{PROTOCOL}={protocol}: only {HTTP} is supported, which collectors take on port 4318")
    for name in (TRACES, METRICS):
        if (kind := environ.get(name) or OTLP) not in (OTLP, NONE):
            raise ExporterError(f"{name}={kind}: {OTLP} and {NONE} are supported")
    if not _installed():
        raise ExporterError(f"{ENDPOINT}={endpoint} needs an exporter: pip install '{PACKAGE}'")
    return True


def _installed() -> bool:
    try:
        return find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:  # of a package above it, such as another exporter's
        return False


class Exporter:
    """Sends traces and metrics to a collector; the SDK reads headers, timeouts, sampler and intervals by itself.

    Args:
        environ: `OTEL_TRACES_EXPORTER` or `OTEL_METRICS_EXPORTER` of `none` leaves that one out, for collectors that
            take only the other.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._providers: list[TracerProvider | MeterProvider] = []
        self._sinks: list[Callable[[Record], None]] = []
        if environ.get(TRACES) != NONE:
            self._send_traces()
        if environ.get(METRICS) != NONE:
            self._send_metrics()

    def _send_traces(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from parley.telemetry.traces import Spans

        tracer = TracerProvider(resource=described(), shutdown_on_exit=False)
        tracer.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._providers.append(tracer)
        self._sinks.append(Spans(tracer))

    def _send_metrics(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

        from parley.telemetry.traces import Durations

        meter = MeterProvider(
            [PeriodicExportingMetricReader(OTLPMetricExporter())], described(), shutdown_on_exit=False
        )
        self._providers.append(meter)
        self._sinks.append(Durations(meter))

    def __call__(self, record: Record) -> None:
        """Takes one request in; it is sent from a thread of the SDK's."""
        for sink in self._sinks:
            sink(record)

    def close(self) -> None:
        """Sends what is left. A collector that does not answer cannot hold up a stop."""
        last = [threading.Thread(target=end.shutdown, daemon=True) for end in self._providers]
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
        ExporterError: as `exporter_is_set`, and for values that the SDK does not take.
    """
    if not exporter_is_set(environ):
        return None
    try:
        return Exporter(environ)
    except ValueError as error:
        raise ExporterError(f"OTEL_* variables: {one_line(error)}") from error
