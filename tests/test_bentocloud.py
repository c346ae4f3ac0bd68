"""`bentoml deploy` with our deployment file, against a stand-in of BentoCloud's API on loopback."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import attr
import pytest
import yaml
from _bentoml_sdk.service.config import validate
from bentoml._internal.cloud.schemas.modelschemas import DeploymentServiceConfig, DeploymentTargetHPAConf, EnvItemSchema
from bentoml._internal.cloud.schemas.schemasv2 import CreateDeploymentSchema

from parley.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
CLOUD = ROOT / "deploy" / "bentocloud"
TOKEN = "a-token-of-the-test"
NOW = "2026-01-01T00:00:00Z"

RESOURCE: dict[str, Any] = {
    "uid": "1",
    "created_at": NOW,
    "updated_at": NOW,
    "deleted_at": None,
    "resource_type": "any",
    "labels": [],
}
USER = {"name": "tester", "email": "", "first_name": "", "last_name": ""}
BENTO = {
    **RESOURCE,
    "name": "newest",
    **dict.fromkeys(["description", "image_build_status", "upload_finished_reason"], ""),
    **dict.fromkeys(["presigned_upload_url", "presigned_download_url"], ""),
    "version": "newest",
    "upload_status": "success",
    "manifest": {"service": "service:Parley", "name": "parley", "bentoml_version": "1.4.39", "size_bytes": 1,
                 "entry_service": "parley"},
}  # fmt: skip
DEPLOYED = {
    **RESOURCE,
    "name": "parley",
    "status": "running",
    "kube_namespace": "parley",
    "creator": USER,
    "cluster": {**RESOURCE, "name": "default", "description": "", "organization_name": "", "creator": USER},
    "latest_revision": None,
}


class Cloud(BaseHTTPRequestHandler):
    """Knows one Bento, and takes any deployment of it."""

    received: list[tuple[str, str | None, dict[str, Any]]]

    def do_GET(self) -> None:
        """The Bento, alone in its list, as BentoCloud describes what was pushed before."""
        alone = {"start": 0, "count": 1, "total": 1, "items": [BENTO]}
        self._answer(alone if self.path.partition("?")[0].endswith("/bentos") else BENTO)

    def do_POST(self) -> None:
        """Takes the deployment."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.received.append((self.path, self.headers["X-YATAI-API-TOKEN"], body))
        self._answer(DEPLOYED)

    def log_message(self, *_: object) -> None:
        """Silent."""

    def _answer(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def cloud() -> Iterator[ThreadingHTTPServer]:
    """The stand-in, listening."""
    Cloud.received = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Cloud)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def deployment() -> dict[str, Any]:
    """Our file."""
    content: dict[str, Any] = yaml.safe_load((CLOUD / "deployment.yaml").read_text("utf-8"))
    return content


def stated(content: Any) -> Any:
    """Without the nulls that BentoML puts where a file says nothing."""
    if not isinstance(content, dict):
        return content
    return {key: stated(value) for key, value in content.items() if value is not None}


def unknown(content: dict[str, Any], schema: type) -> set[str]:
    """Keys that the schema does not have, and that BentoCloud would ignore."""
    return content.keys() - {field.name for field in attr.fields(schema)}


def test_every_key_is_known() -> None:
    """Fails when a key is misspelt or was renamed upstream: BentoML and BentoCloud drop those without a word."""
    content = deployment()
    service = content["services"]["parley"]
    assert not unknown(content, CreateDeploymentSchema)
    assert not unknown(service, DeploymentServiceConfig)
    assert not unknown(service["scaling"], DeploymentTargetHPAConf)
    assert not any(unknown(each, EnvItemSchema) for each in content["envs"])
    assert validate(service["config_overrides"]) == service["config_overrides"]
    Settings.from_env({each["name"]: each["value"] for each in content["envs"]})


def test_deploy_sends_what_the_file_says(cloud: ThreadingHTTPServer, tmp_path: Path) -> None:
    """Fails when `bentoml deploy` would ask for another Bento, size or scale than the file, or lose a setting."""
    address = f"http://127.0.0.1:{cloud.server_port}"
    account = {"BENTO_CLOUD_API_KEY": TOKEN, "BENTO_CLOUD_API_ENDPOINT": address}
    environment = {**os.environ, **account, "BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "-m", "bentoml", "deploy", "--no-wait", "-f", str(CLOUD / "deployment.yaml")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ((path, token, body),) = Cloud.received
    assert path.partition("?")[0] == "/api/v2/deployments"
    assert token == TOKEN
    sent = deployment()
    assert stated({key: body[key] for key in sent}) == sent


def test_bento_for_the_cloud_builds_and_has_no_dockerfile(tmp_path: Path) -> None:
    """Fails when the guide's `bentoml build` fails, or the Bento brings what BentoCloud would build another way."""
    environment = {**os.environ, "BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "-m", "bentoml", "build", "--output", "tag", "-f", str(CLOUD / "bentofile.yaml")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    name, version = done.stdout.strip().removeprefix("__tag__:").split(":")
    assert name == deployment()["bento"].partition(":")[0]
    bento = tmp_path / "bentos" / name / version
    assert (bento / "src/models/pocket/model.safetensors").is_file()
    assert not (bento / "src/deploy/Dockerfile.template").exists()


def test_both_bentofiles_hold_the_same() -> None:
    """Fails when the Bento for BentoCloud falls behind the one for images in anything but how its image is made."""
    ours, theirs = (yaml.safe_load((folder / "bentofile.yaml").read_text("utf-8")) for folder in (ROOT, CLOUD))
    assert ours.pop("docker") != theirs.pop("docker")
    assert ours == theirs
