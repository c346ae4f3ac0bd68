"""The OpenTelemetry exporter: OTLP over HTTP, set by OpenTelemetry's own `OTEL_*` variables and nothing else."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec

from parley.telemetry.record import Record

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"
HTTP = "http/protobuf"


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
        raise ExporterError(f"{ENDPOINT}={endpoint} needs an exporter: pip install 'parley[otel]'")
    return True


def otlp_sinks(environ: Mapping[str, str]) -> list[Callable[[Record], None]]:
    """Sinks that export traces and metrics; none where no endpoint is set, and then nothing is imported either.

    The SDK reads the rest of its variables itself: headers, timeouts, the sampler, intervals.

    Raises:
        ExporterError: as `exporter_is_set`.
    """
    return _sinks(environ.get("OTEL_SERVICE_NAME", "parley")) if exporter_is_set(environ) else []


def _sinks(service_name: str) -> list[Callable[[Record], None]]:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from parley.telemetry.traces import Durations, Spans

    resource = Resource.create({"service.name": service_name})
    tracer = TracerProvider(resource=resource)
    tracer.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    meter = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())], resource)
    return [Spans(tracer), Durations(meter)]
