"""The images as they are run: hardened, small, silent, and stopped in order."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.conftest import descendants
from tests.image.conftest import ROOT, Note
from tests.image.podman import ISOLATED, READY_SECONDS, Container, fetch, podman, running
from tests.scrape import until

MB = 1_000_000
SERVICE_MB = 900
CLIENT_MB = 600
START_SECONDS = 10.0
STARTS = 3
DRAIN_SECONDS = 30.0
"""The service's own default."""
FOREIGN = ["gcc", "cc", "g++", "git", "curl", "nvcc"]

SILENCE = {
    "service_image": ["BENTOML_DO_NOT_TRACK=True", "HF_HUB_DISABLE_TELEMETRY=1"],
    "client_image": ["STREAMLIT_BROWSER_GATHER_USAGE_STATS=false"],
}
SLOW_STREAM = {
    "model": "echo",
    "messages": [{"role": "user", "content": "slow " + "word " * 60}],
    "stream": True,
}
"""Three seconds of it."""

PAGE = """
from streamlit.testing.v1 import AppTest
page = AppTest.from_file("/app/frontend/app.py", default_timeout=30).run()
assert not page.exception, page.exception
print(len(page.chat_input))
"""


def size(image: str) -> int:
    """Bytes of all layers, unpacked."""
    return int(podman("image", "inspect", "--format={{.Size}}", image))


def seconds_without_cpu(pid: int) -> float:
    """How long a process's main thread was ready to run and did not: Linux's `sched-stats.rst`."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


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


def test_starts_in_ten_seconds(service: Container, note: Note) -> None:
    """Fails when start-up grows too slow.

    What other programs of this machine do is not its fault: counted is the best start of a few, less the time in which
    its processes were ready to run and had no CPU.
    """
    starts = [_start(service) for _ in range(STARTS)]
    note("start to ready, seconds", [f"{taken:.1f}, {waited:.1f} of them without a CPU" for taken, waited in starts])
    assert min(taken - waited for taken, waited in starts) <= START_SECONDS


def _start(container: Container) -> tuple[float, float]:
    """Seconds from `podman run` to ready, and how many of them its processes waited for a CPU."""
    try:
        taken = container.start()
        pid = int(podman("inspect", "--format={{.State.Pid}}", container.name))
        # Each process starts when the one before has loaded, so that their main threads' waits add up.
        return taken, sum(seconds_without_cpu(each) for each in (pid, *descendants(pid)))
    finally:
        container.remove()


def test_runs_hardened_and_answers(service: Container, note: Note) -> None:
    """Fails when the service needs root, a capability, a writable root, or more memory than we say."""
    with running(service):
        assert json.loads(fetch(f"{service.url}/chat", {"user_input": "Who is Batman?"}))
        assert service.execute("id", "-u") == "1034"
        status = service.execute("cat", "/proc/1/status")
        assert "CapEff:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        note("memory of the running service", podman("stats", "--no-stream", "--format={{.MemUsage}}", service.name))


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
    with isolated(service):
        assert service.execute("python", "-c", ask)


@pytest.mark.parametrize("which", ["service_image", "client_image"])
def test_health_check_is_in_the_image(which: str, request: pytest.FixtureRequest) -> None:
    """Fails when the image format loses the health check, or the check needs a tool that the image lacks."""
    image = request.getfixturevalue(which)
    check = json.loads(podman("image", "inspect", "--format={{json .HealthCheck}}", image))
    assert check["Test"][:2] == ["CMD", "python"]


def test_health_check_tells_ready_from_not(service: Container) -> None:
    """Fails when an orchestrator would send requests to a service that cannot answer."""
    check = json.loads(podman("image", "inspect", "--format={{json .HealthCheck}}", service.image))["Test"][1:]
    other = [part.replace("3000", "3009") for part in check]
    with isolated(service):
        until(lambda: exits_with_0(service.name, check), READY_SECONDS)
        assert not exits_with_0(service.name, other)


@contextmanager
def isolated(container: Container) -> Iterator[None]:
    """Runs it with no network but its own loopback, where it has the port that the image names."""
    environment = [f"--env={key}={value}" for key, value in container.environment.items()]
    podman("run", "--detach", "--replace", f"--name={container.name}", *ISOLATED, *environment, container.image)
    try:
        yield
    finally:
        container.remove()


def exits_with_0(name: str, command: list[str]) -> bool:
    """Whether a command in a container says yes."""
    return subprocess.run(["podman", "exec", name, *command], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("which", ["service_image", "client_image"])
def test_telemetry_is_off(which: str, request: pytest.FixtureRequest) -> None:
    """Fails when the image stops telling BentoML, the hub's client or Streamlit to report to nobody."""
    environment = json.loads(
        podman("image", "inspect", "--format={{json .Config.Env}}", request.getfixturevalue(which))
    )
    assert set(SILENCE[which]) <= set(environment)


def test_user_is_a_number(service_image: str, client_image: str) -> None:
    """Fails when `runAsNonRoot` cannot tell that the image's own user is not root: it knows numbers alone."""
    users = [podman("image", "inspect", "--format={{.User}}", image) for image in (service_image, client_image)]
    assert users == ["1034:1034", "1034:1034"]


def test_models_can_be_kept(service_image: str) -> None:
    """Fails when Docker makes a new volume at /models root's, as it does without this folder: nothing is kept there."""
    stat = ["--entrypoint=stat", service_image, "--format=%u:%g %F", "/models"]
    assert podman("run", "--rm", "--no-healthcheck", "--network=none", *stat) == "1034:1034 directory"


def test_traces_can_be_exported(service_image: str) -> None:
    """Fails when the image lacks the exporter or one of its packages, and ends where a collector is set."""
    imports = "from opentelemetry.exporter.otlp.proto.http import metric_exporter, trace_exporter"
    python = ["--entrypoint=python", service_image, "-c", imports]
    podman("run", "--rm", "--no-healthcheck", "--network=none", *python)


def test_stops_in_order(service_image: str, note: Note) -> None:
    """Fails when SIGTERM does not reach the service through the image's entry point, or cuts the answer under way."""
    container = Container(service_image, "parley-stop", "127.0.0.22", environment={"PARLEY_ENGINE": "echo"})
    with running(container), httpx.Client(base_url=container.url, timeout=60) as http:
        with http.stream("POST", "/v1/chat/completions", json=SLOW_STREAM) as response:
            lines = response.iter_lines()
            next(lines)
            begun = time.monotonic()
            stopping = threading.Thread(target=container.stop)
            stopping.start()
            rest = list(lines)
        stopping.join()
    taken = time.monotonic() - begun
    note("SIGTERM to exit with a stream under way, seconds", round(taken, 1))
    assert rest[-2:] == ["data: [DONE]", ""]
    assert taken < DRAIN_SECONDS


def test_an_idle_service_stops_at_once_and_with_0(service: Container, note: Note) -> None:
    """Fails when each rolling update waits for a grace that nobody uses, or an orderly stop looks like a crash."""
    with running(service):
        begun = time.monotonic()
        service.stop()
        note("SIGTERM to exit when idle, seconds", round(time.monotonic() - begun, 1))
        assert time.monotonic() - begun < DRAIN_SECONDS
        assert podman("inspect", "--format={{.State.ExitCode}}", service.name) == "0"


def test_page_runs_hardened(client_image: str, service: Container) -> None:
    """Fails when a package that the image leaves out is needed by the page after all."""
    environment = {"PARLEY_URL": service.url, "STREAMLIT_SERVER_ADDRESS": "127.0.0.23"}
    page = Container(client_image, "parley-page", "127.0.0.23", 8501, "/_stcore/health", environment)
    with running(service, page):
        assert page.execute("python", "-c", PAGE) == "1"


def test_pushed_image_runs_by_its_digest(service: Container, registry: str, note: Note) -> None:
    """Fails when what a registry keeps is not what was built, or the printed digest is not its name."""
    command = [sys.executable, str(ROOT / "deploy" / "push.py"), registry, service.image]
    environment = {**os.environ, "PUSH_OPTIONS": "--tls-verify=false"}
    name = subprocess.check_output(command, env=environment, text=True).strip()
    note("pushed as", name)
    podman("pull", "--tls-verify=false", name)
    pulled = Container(name, service.name, "127.0.0.24", environment=service.environment)
    with running(pulled):
        assert json.loads(fetch(f"{pulled.url}/chat", {"user_input": "Who is Batman?"}))
    podman("rmi", "--force", name)
