"""Service and client together, as `deploy/compose.yaml` runs them."""

import json
import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT, free_port, needs
from tests.image.podman import fetch, podman, wait_until_ready

TEN_MINUTES = 600 * 10**9
"""Nanoseconds."""

COMPOSE = ["podman-compose", "-f", str(ROOT / "deploy" / "compose.yaml")]


@pytest.fixture(scope="module")
def ports(service_image: str, client_image: str) -> Iterator[tuple[int, int]]:
    """The host's ports of service and client, while both run."""
    needs("podman-compose")
    service, page = free_port(), free_port()
    images = {"IMAGE": service_image, "CLIENT_IMAGE": client_image}
    environment = {**os.environ, **images, "PORT": str(service), "UI_PORT": str(page)}
    try:
        subprocess.run([*COMPOSE, "up", "--detach", "--no-build"], env=environment, check=True)
        yield service, page
    finally:
        subprocess.run([*COMPOSE, "down", "--volumes", "--timeout=5"], env=environment, check=True)


def test_compose_runs_both(ports: tuple[int, int]) -> None:
    """Fails when the two do not find each other, or one of them does not run as hardened as it is written."""
    service, page = (f"http://127.0.0.1:{port}" for port in ports)
    wait_until_ready(f"{service}/readyz")
    wait_until_ready(f"{page}/_stcore/health")
    assert json.loads(fetch(f"{service}/chat", {"user_input": "Who is Batman?"}))
    reached = [
        "podman",
        "exec",
        "parley_client_1",
        "python",
        "-c",
        "from parley.client import Client; Client('http://service:3000').models()",
    ]
    subprocess.run(reached, check=True)


def test_a_start_may_download(ports: tuple[int, int], service_image: str) -> None:
    """Fails when the service counts as ill, and the client never starts, while a model is downloaded and converted."""
    check = json.loads(podman("image", "inspect", "--format={{json .HealthCheck}}", service_image))
    running = json.loads(podman("inspect", "--format={{json .Config.Healthcheck}}", "parley_service_1"))
    assert {**check, "StartPeriod": TEN_MINUTES}.items() <= running.items()
