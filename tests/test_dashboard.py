"""The Grafana dashboard: a real Prometheus scrapes a real service, and answers every query of every panel."""

import json
import math
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.conftest import ROOT, Served, free_port, needs, stop

DASHBOARD = ROOT / "deploy" / "grafana" / "parley.json"
MONITOR = ROOT / "deploy" / "kubernetes" / "components" / "prometheus" / "monitor.yaml"
SCRAPES = 4


@contextmanager
def prometheus(target: Served, folder: Path) -> Iterator[str]:
    """A Prometheus on loopback that scrapes `target` once a second; gives its address."""
    needs("prometheus")
    config = folder / "prometheus.yml"
    # The operator labels a target with its port's name, in the word that our series have for the route.
    place = {"targets": [target.url.removeprefix("http://")], "labels": {"endpoint": "http"}}
    honoured = yaml.safe_load(MONITOR.read_text())["spec"]["endpoints"][0].get("honorLabels", False)
    job = {"job_name": "parley", "honor_labels": honoured, "static_configs": [place]}
    config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}))
    port = free_port()
    flags = [f"--config.file={config}", f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["prometheus", *flags], stdout=log, stderr=log, start_new_session=True)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        stop(process)


def query(url: str, expression: str) -> list[float]:
    """The values of an instant query; empty while Prometheus is starting."""
    try:
        response = requests.get(f"{url}/api/v1/query", params={"query": expression}, timeout=10)
    except requests.ConnectionError:
        return []
    if response.status_code == 503:
        return []
    answer = response.json()
    assert answer["status"] == "success", answer
    return [float(sample["value"][1]) for sample in answer["data"]["result"]]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    """Every query, with Grafana's variables set as Grafana sets them for one service and all models."""
    values = {"$__rate_interval": "30s", "$model": ".*", "$service": ".*"}
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    for name, value in values.items():
        found = [expression.replace(name, value) for expression in found]
    return found


def drive(served: Served, done: threading.Event) -> None:
    """Requests of every kind until told to stop."""
    url = f"{served.url}/v1/chat/completions"
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "Who is Batman? Tell me more."}], "max_tokens": 8}
    while not done.is_set():
        requests.post(url, json=body, timeout=60)
        requests.post(url, json={**body, "stream": True}, timeout=60)
        requests.post(url, json={}, timeout=60)
        requests.post(f"{served.url}/chat", json={"user_input": "hello"}, timeout=60)


def scraped(url: str) -> float:
    return sum(query(url, 'count_over_time(up{job="parley"}[5m])'))


def test_every_query_of_the_dashboard_gives_numbers(service: Served, tmp_path: Path) -> None:
    """Fails when a panel asks for a series or a label that the service does not have, or that does not parse."""
    done = threading.Event()
    traffic = threading.Thread(target=drive, args=(service, done))
    traffic.start()
    try:
        with prometheus(service, tmp_path) as url:
            deadline = time.monotonic() + 60
            while scraped(url) < SCRAPES:
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.2)
            asked = expressions()
            answers = {expression: query(url, expression) for expression in asked}
            routes = query(url, "count(count by (endpoint) (bentoml_service_request_total))")
    finally:
        done.set()
        traffic.join()
    assert len(asked) > 40
    assert routes[0] > 1
    assert not [expression for expression, values in answers.items() if not values]
    assert not [expression for expression, values in answers.items() if all(map(math.isnan, values))]


def test_the_dashboard_shows_every_series_of_vllm_that_is_served(service: Served) -> None:
    """Fails when a series is added that nobody looks at, or a panel is left behind by a rename."""
    text = requests.get(f"{service.url}/metrics", timeout=10).text
    served = set(re.findall(r"^# TYPE (vllm:\w+|parley:\w+)", text, re.MULTILINE))
    shown = set(re.findall(r"\w+:\w+", " ".join(expressions())))
    missing = {name for name in served if not any(found.startswith(name) for found in shown)}
    assert not missing


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_can_be_imported(panel: dict[str, Any]) -> None:
    """Fails when a panel has no place, no unit, or a data source of somebody's own Grafana."""
    assert panel["datasource"]["uid"] == "${source}"
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
