"""Containers of the tests, run by podman on the host's network as a cluster would run them."""

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

HARDENED = [
    *("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges"),
    *("--memory=1g", "--pids-limit=1024", "--network=host", "--no-healthcheck"),
]
ISOLATED = ["--network=none" if each == "--network=host" else each for each in HARDENED]
"""As hardened, and with no network but its own loopback."""
READY_SECONDS = 120.0
STOP_SECONDS = 60

# Inside a container or a small machine podman cannot raise limits, has no systemd, and finds no journal.
CONTAINERS_CONF = """\
[containers]
default_ulimits = []
[engine]
runtime = "{runtime}"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


def use_own_settings(folder: Path) -> None:
    """Settings under which podman runs and builds on any machine; the caller's own ones win."""
    conf = folder / "containers.conf"
    conf.write_text(CONTAINERS_CONF.format(runtime="runc" if shutil.which("runc") else "crun"))
    os.environ.setdefault("CONTAINERS_CONF", str(conf))
    os.environ.setdefault("BUILDAH_ISOLATION", "chroot")


def podman(*arguments: str | Path) -> str:
    """What podman prints; its own account of a failure fails the test."""
    command = ["podman", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


def fetch(url: str, body: object = None) -> bytes:
    """The body of the answer to a GET, or to a POST of JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: bytes = response.read()
        return answer


def is_ready(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        fetch(url)
    except (urllib.error.URLError, OSError):
        return False
    return True


def wait_until_ready(url: str, log: Callable[[], str] = str) -> None:
    """Returns when a GET is answered with 200; fails, with the log, when the time is up."""
    start = time.monotonic()
    while not is_ready(url):
        assert time.monotonic() - start < READY_SECONDS, f"{url} is not ready\n{log()}"
        time.sleep(0.1)


@dataclass
class Container:
    """One container on a loopback address of its own; replicas of a service differ in the address alone."""

    image: str
    name: str
    address: str
    port: int = 3000
    health: str = "/readyz"
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{self.place}"

    @property
    def place(self) -> str:
        """Its host and port."""
        return f"{self.address}:{self.port}"

    def start(self) -> float:
        """Starts it and returns the seconds until it could answer."""
        place = {"BENTOML_HOST": self.address, "BENTOML_PORT": str(self.port)}
        environment = [f"--env={key}={value}" for key, value in {**place, **self.environment}.items()]
        begun = time.monotonic()
        podman("run", "--detach", "--replace", f"--name={self.name}", *HARDENED, *environment, self.image)
        wait_until_ready(self.url + self.health, self.log)
        return time.monotonic() - begun

    def stop(self) -> None:
        """SIGTERM, and time to drain."""
        podman("stop", f"--time={STOP_SECONDS}", self.name)

    def kill(self) -> None:
        """SIGKILL."""
        podman("kill", "--signal=KILL", self.name)

    def execute(self, *command: str) -> str:
        """What a command prints inside."""
        return podman("exec", self.name, *command)

    def log(self) -> str:
        """The last lines that it wrote."""
        command = ["podman", "logs", "--tail=20", self.name]
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False).stdout

    def remove(self) -> None:
        """Ends it at once and forgets it."""
        podman("rm", "--force", "--time=0", "--ignore", self.name)


@contextmanager
def running(*containers: Container) -> Iterator[None]:
    """Starts the containers, and removes them whatever happens."""
    try:
        for container in containers:
            container.start()
        yield
    finally:
        for container in containers:
            container.remove()
