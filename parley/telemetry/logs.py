"""Logs: one JSON object a line from this project's loggers, one line a request, and no text of any user.

A line of a request carries its id. Exceptions are told without their messages, other loggers' included: what a library
says of a text that it could not handle often quotes it.
"""

import asyncio
import json
import logging
import sys
from datetime import UTC, datetime
from itertools import chain
from typing import Any

from parley.crash import report_without_messages, without_message
from parley.telemetry.record import PROBES, Record, current

access = logging.getLogger("parley.access")
_crashes = logging.getLogger("parley.crash")


def configure_logging() -> None:
    """Sets up this process: JSON lines on standard output for `parley.*`, no messages of exceptions from anyone.

    Call it after the server has installed its own handlers.
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLine())
    ours = logging.getLogger("parley")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)
    installed = [logging.getLogger(name).handlers for name in (None, "bentoml", "uvicorn.error")]
    for other in {handler, *chain.from_iterable(installed)}:
        other.addFilter(withhold_messages)
    report_without_messages()


def report_loop_errors() -> None:
    """Logs what no task of the running event loop caught; asyncio's own report quotes the exception."""
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: _crashes.error(context["message"], exc_info=context.get("exception"))
    )


def withhold_messages(record: logging.LogRecord) -> bool:
    """A logging filter: lets every record through, with exceptions told by type and place only."""
    if record.exc_info and record.exc_info[1]:
        record.exc_text = without_message(record.exc_info[1])
        record.exc_info = None
    if isinstance(record.args, tuple):
        record.args = tuple(type(arg).__qualname__ if isinstance(arg, BaseException) else arg for arg in record.args)
    return True


class JsonLine(logging.Formatter):
    """Formats a record as one line of JSON; what was passed as `extra={"fields": {...}}` is in it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := current().head.request_id:
            line["request_id"] = request_id
        line |= getattr(record, "fields", {})
        if record.exc_text:
            line["exception"] = record.exc_text
        return json.dumps(line, ensure_ascii=False)


def log_access(record: Record) -> None:
    """The access record of one request; `/metrics` counts probes, and nobody would read them here."""
    head = record.head
    if head.route in PROBES:
        return
    fields = {
        "request_id": head.request_id,
        "method": head.method,
        "route": head.route,
        "status": record.status,
        "code": record.code,
        "key": record.key,
        "duration": _rounded(record.duration),
        **_of_answers(record),
    }
    access.info("%s %s %d", head.method, head.route, record.status, extra={"fields": fields})


def _of_answers(record: Record) -> dict[str, Any]:
    """Tokens together, times of the first answer; nothing where none was begun."""
    if not record.answers:
        return {}
    first = record.answers[0]
    return {
        "model": first.model,
        **_known(prompt_tokens=first.prompt_tokens, cached_tokens=first.cached_tokens),
        "completion_tokens": sum(answer.completion_tokens for answer in record.answers),
        "finish_reason": first.finish_reason,
        "queue_time": _rounded(first.queue_time),
        "time_to_first_token": _rounded(record.time_to_first_token(first)),
        "generation_time": _rounded(first.inference_time),
    }


def _known(**counts: int | None) -> dict[str, int]:
    """Without what nobody counted."""
    return {name: count for name, count in counts.items() if count is not None}


def _rounded(seconds: float | None) -> float | None:
    """Seconds to the tenth of a millisecond."""
    return None if seconds is None else round(seconds, 4)
