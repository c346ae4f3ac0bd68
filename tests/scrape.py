"""Metrics and access records as a monitoring system sees them."""

import json
import time
from collections.abc import Callable
from typing import Any

import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Served

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(served: Served) -> Series:
    """Every sample of `/metrics` by its name and labels."""
    response = requests.get(f"{served.url}/metrics", timeout=10)
    assert response.status_code == 200
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def total(series: Series, name: str, **labels: str) -> float:
    """The sum of all samples of a name that have these labels."""
    wanted = labels.items()
    return sum(value for (found, have), value in series.items() if found == name and have >= wanted)


def records(served: Served, request_id: str | None = None) -> list[dict[str, Any]]:
    """The access records, of one request or of all."""
    lines = [json.loads(line) for line in served.log().splitlines() if line.startswith("{")]
    return [line for line in lines if line["logger"] == "parley.access" and request_id in (None, line["request_id"])]


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def only_record(served: Served, request_id: str) -> dict[str, Any]:
    """The one access record of a request; it is written when the response has been sent."""
    until(lambda: records(served, request_id))
    (record,) = records(served, request_id)
    return record
