"""The real Deployment, with its ConfigMap and volume claim and a Secret of ours, run by `podman kube play`."""

import hashlib
import json
import secrets
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from tests.image.podman import wait_until_ready
from tests.image.podman5 import Run, podman5
from tests.test_manifests import manifests

OURS = {("ConfigMap", "parley-settings"), ("PersistentVolumeClaim", "parley-models")}
CONTAINER = "parley-pod-parley"
QUESTION = {"user_input": "Who is Batman?"}


def manifest(image: str, key: str) -> str:
    """The service's part of the single-node overlay, with a key of ours."""
    objects = manifests("single-node")
    deployment = objects["Deployment", "parley"]
    deployment["spec"]["template"]["spec"]["containers"][0]["image"] = image
    entry = f'[[keys]]\nname = "test"\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n'
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "parley-keys"},
        "stringData": {"keys.toml": entry},
    }
    text: str = yaml.safe_dump_all([*(objects[each] for each in sorted(OURS)), secret, deployment])
    return text


def address(podman: Run) -> str:
    """The pod's own address."""
    infra = podman("pod", "inspect", "--format={{.InfraContainerID}}", "parley-pod")
    networks: dict[str, Any] = json.loads(podman("inspect", "--format={{json .NetworkSettings.Networks}}", infra))
    return str(next(iter(networks.values()))["IPAddress"])


def ask(url: str, headers: dict[str, str]) -> tuple[int, bytes]:
    """Status and body of the answer to `QUESTION`."""
    content = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(f"{url}/chat", json.dumps(QUESTION).encode(), content)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def probe(name: str) -> list[str]:
    """The command of one of the Deployment's probes."""
    (container,) = manifests("single-node")["Deployment", "parley"]["spec"]["template"]["spec"]["containers"]
    command: list[str] = container[name]["exec"]["command"]
    return command


def test_deployment_runs_as_written(service_image: str, tmp_path: Path) -> None:
    """Fails when the pod needs a writable root or root's rights, or does not read its ConfigMap or its Secret."""
    key = secrets.token_urlsafe(32)
    (tmp_path / "parley.yaml").write_text(manifest(service_image, key))
    with podman5(tmp_path) as (podman, folder):
        try:
            podman("kube", "play", f"{folder}/parley.yaml")
            url = f"http://{address(podman)}:3000"
            wait_until_ready(f"{url}/readyz", lambda: podman("logs", CONTAINER))
            assert ask(url, {})[0] == 401
            status, body = ask(url, {"Authorization": f"Bearer {key}"})
            assert status == 200
            assert json.loads(body)
            for name in ("startupProbe", "readinessProbe", "livenessProbe"):
                podman("exec", CONTAINER, *probe(name))
            podman("exec", CONTAINER, "touch", "/models/writable")
            assert podman("exec", CONTAINER, "id", "-u") == "1034"
        finally:
            podman("kube", "down", "--force", f"{folder}/parley.yaml")
