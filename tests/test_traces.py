"""OpenTelemetry: spans and gen_ai metrics, sent to a collector that the test runs itself."""

import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from parley.telemetry import exporter
from parley.telemetry.exporter import ExporterError, create_exporter, exporter_is_set
from parley.telemetry.record import AnswerRecord, Head, Record
from parley.telemetry.traces import Spans
from tests.conftest import ROOT, free_port, serve
from tests.scrape import scrape, total

SECRET = "zanzibar-7431"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@dataclass
class Collector:
    """What was exported to `endpoint` so far."""

    endpoint: str
    bodies: list[tuple[str, bytes]] = field(default_factory=list)

    def spans(self) -> list[Any]:
        return [
            span
            for path, body in self.bodies
            if path == "/v1/traces"
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def metrics(self) -> dict[str, Any]:
        """The newest state of each metric."""
        return {
            metric.name: metric
            for path, body in self.bodies
            if path == "/v1/metrics"
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector(f"http://127.0.0.1:{free_port()}")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.bodies.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", int(collector.endpoint.rsplit(":", 1)[1])), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()


def plain(attributes: Any) -> dict[str, Any]:
    """OTLP's attributes as a dict; lists are left out."""
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in attributes}


def test_r07_a_request_is_a_span_with_its_phases_and_no_text() -> None:
    """Fails when traces miss what the conventions promise, do not join the client's trace, or hold a prompt (R7)."""
    with collecting() as collector:
        exporter = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "OTEL_METRIC_EXPORT_INTERVAL": "300"}
        with serve({"PARLEY_ENGINE": "echo", **exporter}) as served:
            requests.post(
                f"{served.url}/v1/chat/completions",
                json={"messages": [{"role": "user", "content": f"slow {SECRET} two three"}]},
                headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "traced"},
                timeout=30,
            ).raise_for_status()
            requests.get(f"{served.url}/nowhere/{SECRET}", timeout=10)
            time.sleep(0.5)
    spans = {span.name: span for span in collector.spans()}
    assert spans.keys() == {"POST /v1/chat/completions", "queue", "prefill", "decode", "GET unknown"}
    root = spans["POST /v1/chat/completions"]
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, PARENT)
    assert {spans[phase].parent_span_id for phase in ("queue", "prefill", "decode")} == {root.span_id}
    decode = spans["decode"]
    assert 0.1e9 < decode.end_time_unix_nano - decode.start_time_unix_nano < 5e9
    assert abs(root.end_time_unix_nano / 1e9 - time.time()) < 60
    attributes = plain(root.attributes)
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.request.model"] == attributes["gen_ai.response.model"] == "echo"
    assert attributes["gen_ai.usage.input_tokens"] == attributes["gen_ai.usage.output_tokens"] == 28
    assert attributes["parley.request_id"] == "traced"
    assert plain(spans["GET unknown"].attributes)["error.type"] == "not_found"
    assert spans["GET unknown"].status.code == 0  # unset: by the conventions for HTTP a client's mistake is no error
    names = ("request.duration", "time_to_first_token", "time_per_output_token")
    exported = collector.metrics()
    for name in names:
        (point,) = exported[f"gen_ai.server.{name}"].histogram.data_points
        assert point.count == 1
        assert plain(point.attributes)["gen_ai.operation.name"] == "chat"
    assert not [body for _, body in collector.bodies if SECRET.encode() in body]


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, "parley"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=chat-prod"}, "chat-prod"),
        ({"OTEL_SERVICE_NAME": "chat", "OTEL_RESOURCE_ATTRIBUTES": "service.name=chat-prod"}, "chat"),
    ],
)
def test_the_sender_is_called_as_opentelemetry_says(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], name: str
) -> None:
    """Fails when a name that the SDK's variables give is replaced by ours."""
    for variable in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert exporter.described().attributes["service.name"] == name


@pytest.mark.parametrize(
    ("status", "code", "is_error"),
    [
        (429, "queue_full", False),
        (499, "client_closed_request", True),
        (500, "internal_error", True),
        (200, "engine_error", True),
        (200, None, False),
    ],
)
def test_a_span_is_an_error_when_the_service_failed(status: int, code: str | None, is_error: bool) -> None:
    """Fails when every mistake of a client raises the service's error rate, or an answer that broke off does not."""
    exported = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exported))
    Spans(provider)(Record(Head("id", "POST", "/chat", 0.0), 1.0, status, code, None, ()))
    (span,) = exported.get_finished_spans()
    assert (span.status.status_code is StatusCode.ERROR) == is_error


def test_nothing_is_exported_unless_it_is_asked_for() -> None:
    """Fails when a service that nobody told to export does it."""
    assert not exporter_is_set({"OTEL_SERVICE_NAME": "chat"})
    assert create_exporter({}) is None
    assert not exporter_is_set({"OTEL_EXPORTER_OTLP_ENDPOINT": ""})


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    """Fails when a manifest that leaves a value empty keeps the service from starting, against OpenTelemetry's rule."""
    empty = dict.fromkeys(["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER"], "")
    assert exporter_is_set({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318", **empty})


def test_a_protocol_that_cannot_be_had_is_told_in_one_line() -> None:
    """Fails when traces are silently lost because the exporter speaks another protocol than the collector."""
    with pytest.raises(ExporterError, match="OTEL_EXPORTER_OTLP_PROTOCOL=grpc: only http/protobuf"):
        exporter_is_set({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("OTEL_METRICS_EXPORTER", "prometheus", "OTEL_METRICS_EXPORTER=prometheus: otlp and none are supported"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "256", "OTEL_* variables: max_export_batch_size must be"),
    ],
)
def test_what_the_exporter_cannot_do_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    """Fails when a service with a variable that is wrong starts over and over, or exports otherwise than it is told."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ExporterError) as error:
        create_exporter({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", name: value})
    assert str(error.value).startswith(told)


@pytest.mark.parametrize(
    ("left_out", "route"), [("OTEL_METRICS_EXPORTER", "/v1/metrics"), ("OTEL_TRACES_EXPORTER", "/v1/traces")]
)
def test_a_collector_may_take_one_kind_alone(monkeypatch: pytest.MonkeyPatch, left_out: str, route: str) -> None:
    """Fails when a backend for traces is sent metrics, and every export of them is an error in the log."""
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        sending = create_exporter({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, left_out: "none"})
        assert sending is not None
        answer = AnswerRecord("echo", 0.0, 0.1, 0.2, 0.3, 1, None, 2, "stop")
        sending(Record(Head("id", "POST", "/chat", 0.0), 1.0, 200, None, None, (answer,)))
        sending.close()
    taken = {taken for taken, _ in collector.bodies}
    assert taken == {"/v1/metrics", "/v1/traces"} - {route}


def without_its_package(_: str) -> None:
    """`find_spec` where the exporter's parent package is missing as well."""
    raise ModuleNotFoundError("No module named 'opentelemetry.exporter'")


@pytest.mark.parametrize("found", [lambda _: None, without_its_package])
def test_a_missing_exporter_is_named_as_it_is_installed(monkeypatch: pytest.MonkeyPatch, found: Any) -> None:
    """Fails when the advice installs something else: on the package index, our own name may be another project's."""
    monkeypatch.setattr(exporter, "find_spec", found)
    with pytest.raises(ExporterError) as error:
        exporter_is_set({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318"})
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    asked = " ".join(f"'{package}'" for package in extras["otel"])
    assert str(error.value) == f"OTEL_EXPORTER_OTLP_ENDPOINT=http://x:4318 needs an exporter: pip install {asked}"
    assert f"pip install {asked}" in (ROOT / "docs/observability.md").read_text("utf-8")


def test_a_collector_that_is_gone_harms_nobody() -> None:
    """Fails when answers wait for, or fail with, an exporter that cannot deliver."""
    exporter = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}", "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with serve({"PARLEY_ENGINE": "echo", **exporter}) as served:
        for _ in range(20):
            requests.post(f"{served.url}/chat", json={"user_input": SECRET}, timeout=5).raise_for_status()
        time.sleep(0.5)
        assert total(scrape(served), "vllm:request_success_total", finished_reason="stop") == 20
        assert SECRET not in served.log()
