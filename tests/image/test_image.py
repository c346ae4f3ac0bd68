"""The images as they are run: hardened, small, silent, and stopped in order."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.image.conftest import ROOT, Note
from tests.image.podman import HARDENED, Container, fetch, podman, running
from tests.image.registry import registry

MB = 1_000_000
SERVICE_MB = 900
CLIENT_MB = 600
FOREIGN = ["gcc", "cc", "g++", "git", "curl", "nvcc"]

PAGE = """
from streamlit.testing.v1 import AppTest
page = AppTest.from_file("/app/frontend/app.py", default_timeout=30).run()
assert not page.exception, page.exception
print(len(page.chat_input))
"""


def size(image: str) -> int:
    """Bytes of all layers, unpacked."""
    return int(podman("image", "inspect", "--format={{.Size}}", image))


@pytest.fixture(scope="module")
def service(service_image: str) -> Container:
    """The service with its default model."""
    environment = {"PARLEY_ALLOW_ANONYMOUS": "true"}
    return Container(service_image, "parley-image-test", "127.0.0.21", environment=environment)


def test_service_image_is_small_and_has_no_tools(service_image: str) -> None:
    """Fails when a compiler, git, CUDA or torch slips into the image that most people run."""
    assert size(service_image) < SERVICE_MB * MB
    run = ["run", "--rm", "--no-healthcheck", "--network=none", "--entrypoint=sh", service_image, "-c"]
    assert podman(*run, f"for tool in {' '.join(FOREIGN)}; do command -v $tool; done; true") == ""
    packages = podman(*run, "ls /app/.venv/lib/python*/site-packages").split()
    assert not [name for name in packages if name in {"torch", "triton", "pip", "nvidia"}]


def test_client_image_is_small(client_image: str) -> None:
    """Fails when the page drags the service's packages along."""
    assert size(client_image) < CLIENT_MB * MB
    listing = podman("run", "--rm", "--no-healthcheck", "--entrypoint=sh", client_image, "-c", "ls /app/.venv/lib/*/*")
    assert not {"torch", "bentoml", "transformers"} & set(listing.split())


def test_runs_hardened_and_answers(service: Container, note: Note) -> None:
    """Fails when the service needs root, a capability, a writable root, or more memory than we say."""
    try:
        note("start to ready, seconds", round(service.start(), 1))
        assert json.loads(fetch(f"{service.url}/chat", {"user_input": "Who is Batman?"}))
        assert service.execute("id", "-u") == "1034"
        status = service.execute("cat", "/proc/1/status")
        assert "CapEff:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        note("memory of the running service", podman("stats", "--no-stream", "--format={{.MemUsage}}", service.name))
    finally:
        service.remove()


def test_answers_without_any_network(service: Container) -> None:
    """Fails when the service asks a hub, a telemetry host or anyone else before it answers."""
    ask = (
        "import time, urllib.request as u\n"
        "for _ in range(600):\n"
        "    try: u.urlopen('http://127.0.0.1:3000/readyz'); break\n"
        "    except OSError: time.sleep(0.1)\n"
        'body = b\'{"user_input": "Who is Batman?"}\'\n'
        "print(u.urlopen(u.Request('http://127.0.0.1:3000/chat', body, {'Content-Type': 'application/json'})).read())"
    )
    options = ["--network=none" if each == "--network=host" else each for each in HARDENED]
    environment = [f"--env={key}={value}" for key, value in service.environment.items()]
    podman("run", "--detach", "--replace", f"--name={service.name}", *options, *environment, service.image)
    try:
        assert service.execute("python", "-c", ask)
    finally:
        service.remove()


@pytest.mark.parametrize("which", ["service_image", "client_image"])
def test_health_check_is_in_the_image(which: str, request: pytest.FixtureRequest) -> None:
    """Fails when the image format loses the health check, or the check needs a tool that the image lacks."""
    image = request.getfixturevalue(which)
    check = json.loads(podman("image", "inspect", "--format={{json .HealthCheck}}", image))
    assert check["Test"][:2] == ["CMD", "python"]


def test_health_check_tells_ready_from_not(service: Container) -> None:
    """Fails when an orchestrator would send requests to a service that cannot answer."""
    service_on_default = Container(service.image, service.name, "127.0.0.1", environment=service.environment)
    check = json.loads(podman("image", "inspect", "--format={{json .HealthCheck}}", service.image))["Test"][1:]
    with running(service_on_default):
        service_on_default.execute(*check)
        other = [part.replace("3000", "3009") for part in check]
        failed = subprocess.run(["podman", "exec", service.name, *other], capture_output=True, check=False)
        assert failed.returncode != 0


def test_stops_in_order(service_image: str, note: Note) -> None:
    """Fails when SIGTERM does not reach the service through the image's entry point."""
    container = Container(service_image, "parley-stop", "127.0.0.22", environment={"PARLEY_ENGINE": "echo"})
    with running(container):
        container.stop()
        assert podman("inspect", "--format={{.State.ExitCode}}", container.name) == "0"


def test_page_runs_hardened(client_image: str, service: Container) -> None:
    """Fails when a package that the image leaves out is needed by the page after all."""
    environment = {"PARLEY_URL": service.url, "STREAMLIT_SERVER_ADDRESS": "127.0.0.23"}
    page = Container(client_image, "parley-page", "127.0.0.23", 8501, "/_stcore/health", environment)
    with running(service, page):
        assert page.execute("python", "-c", PAGE) == "1"


def test_pushed_image_runs_by_its_digest(service: Container, tmp_path: Path, note: Note) -> None:
    """Fails when what a registry keeps is not what was built, or the printed digest is not its name."""
    command = [sys.executable, str(ROOT / "deploy" / "push.py")]
    with registry(tmp_path) as address:
        environment = {**os.environ, "PUSH_OPTIONS": "--tls-verify=false"}
        name = subprocess.check_output([*command, address, service.image], env=environment, text=True).strip()
        note("pushed as", name)
        podman("pull", "--tls-verify=false", name)
    pulled = Container(name, service.name, "127.0.0.24", environment=service.environment)
    with running(pulled):
        assert json.loads(fetch(f"{pulled.url}/chat", {"user_input": "Who is Batman?"}))
    podman("rmi", "--force", name)
