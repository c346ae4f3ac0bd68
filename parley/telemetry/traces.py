"""OpenTelemetry: a trace and the gen_ai metrics of each request, off until an exporter is set.

Attributes, metrics and buckets are those of OpenTelemetry's semantic conventions for HTTP and for generative AI. Spans
are made from the record when the request has ended: a token costs nothing here. No prompt and no answer is in them.
"""

import time
from collections.abc import Mapping

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes, AttributeValue

from parley.contract.errors import ErrorCode
from parley.telemetry.record import PROBES, AnswerRecord, Record

PROVIDER = "parley"

DURATION_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)


class Spans:
    """One server span a request, with a child for each phase of its answers."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("parley")
        self._propagator = TraceContextTextMapPropagator()

    def __call__(self, record: Record) -> None:
        """Exports one request."""
        if record.head.route in PROBES:
            return
        clock = WallClock()
        sent = {"traceparent": record.head.traceparent} if record.head.traceparent else {}
        span = self._tracer.start_span(
            f"{record.head.method} {record.head.route}",
            self._propagator.extract(sent),
            SpanKind.SERVER,
            http_attributes(record),
            start_time=clock.nanoseconds(record.head.arrived),
        )
        if record.code and not _is_the_clients_mistake(record):
            span.set_status(Status(StatusCode.ERROR, record.code))
        for answer in record.answers:
            span.set_attributes(answer_attributes(answer))
            self._phases(span, answer, clock)
        span.end(clock.nanoseconds(record.ended))

    def _phases(self, parent: Span, answer: AnswerRecord, clock: "WallClock") -> None:
        """Child spans of what happened; what the answer did not come to has none."""
        times = [answer.queued, answer.started, answer.first_token, answer.last_token]
        for name, begin, end in zip(("queue", "prefill", "decode"), times, times[1:], strict=False):
            if begin is None or end is None:
                return
            start = clock.nanoseconds(begin)
            child = self._tracer.start_span(name, set_span_in_context(parent), start_time=start)
            child.end(clock.nanoseconds(end))


def _is_the_clients_mistake(record: Record) -> bool:
    """Whether a request was refused for what it was: by the conventions for HTTP no error of a server's span."""
    return 400 <= record.status < 500 and record.code != ErrorCode.CLIENT_CLOSED_REQUEST


class Durations:
    """The gen_ai histograms of a server."""

    def __init__(self, provider: MeterProvider) -> None:
        histogram = provider.get_meter("parley").create_histogram
        self._duration = histogram(
            "gen_ai.server.request.duration", "s", explicit_bucket_boundaries_advisory=DURATION_SECONDS
        )
        self._first_token = histogram(
            "gen_ai.server.time_to_first_token", "s", explicit_bucket_boundaries_advisory=FIRST_TOKEN_SECONDS
        )
        self._token = histogram(
            "gen_ai.server.time_per_output_token", "s", explicit_bucket_boundaries_advisory=TOKEN_SECONDS
        )

    def __call__(self, record: Record) -> None:
        """Takes one request in."""
        error = {"error.type": record.code} if record.code else {}
        for answer in record.answers:
            attributes = {**model_attributes(answer), **error}
            self._duration.record(record.duration, attributes)
            if (seconds := record.time_to_first_token(answer)) is not None:
                self._first_token.record(seconds, attributes)
            if answer.time_per_output_token is not None:
                self._token.record(answer.time_per_output_token, attributes)


class WallClock:
    """Times of the monotonic clock as Unix nanoseconds."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def nanoseconds(self, moment: float) -> int:
        """A moment of the monotonic clock."""
        return int((moment + self._offset) * 1e9)


def http_attributes(record: Record) -> Attributes:
    """What the conventions for HTTP say of a request, and its id."""
    attributes: Mapping[str, AttributeValue] = {
        "http.request.method": record.head.method,
        "http.route": record.head.route,
        "http.response.status_code": record.status,
        "parley.request_id": record.head.request_id,
    }
    return {**attributes, "error.type": record.code} if record.code else attributes


def model_attributes(answer: AnswerRecord) -> dict[str, AttributeValue]:
    """What says which model was asked for what."""
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": answer.model,
        "gen_ai.response.model": answer.model,
    }


def answer_attributes(answer: AnswerRecord) -> dict[str, AttributeValue]:
    """What the conventions for generative AI say of an answer."""
    attributes: dict[str, AttributeValue] = {
        **model_attributes(answer),
        "gen_ai.usage.output_tokens": answer.completion_tokens,
        "gen_ai.response.finish_reasons": [answer.finish_reason],
    }
    if answer.prompt_tokens is not None:
        attributes["gen_ai.usage.input_tokens"] = answer.prompt_tokens
    return attributes
