"""How the images are built: their Dockerfiles, their locks, what is listed of them, and models of one's own."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from parley.engine.model import ModelFolder, resolve
from tests.conftest import POCKET, needs
from tests.image.conftest import ROOT, make
from tests.image.podman import ISOLATED, podman
from tests.models_seq2seq import build_blenderbot
from tests.soak import SOAK

TORCH_VERSION = "2.13.0"
LOCKS = ["image", "image-torch", "image-gpu", "client"]
VALIDATE = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(sys.stdin.read())
sys.exit(fault and str(fault))
"""

ASK = """
import time, urllib.request as u
service = "http://127.0.0.1:3000"
for _ in range(1200):
    try: u.urlopen(service + "/readyz"); break
    except OSError: time.sleep(0.1)
body = b'{"user_input": "Who is Batman?"}'
u.urlopen(u.Request(service + "/chat", body, {"Content-Type": "application/json"})).read()
print(u.urlopen(service + "/v1/models").read().decode())
"""


@pytest.fixture(scope="module")
def dockerfiles(service_image: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The client's, and the service's as BentoML rendered it."""
    rendered = tmp_path_factory.mktemp("rendered") / "Dockerfile"
    command = ["--entrypoint=cat", service_image, "/home/bentoml/bento/env/docker/Dockerfile"]
    rendered.write_text(podman("run", "--rm", "--no-healthcheck", *command))
    return [ROOT / "deploy/client/Dockerfile", rendered]


def test_dockerfiles_are_clean(dockerfiles: list[Path]) -> None:
    """Fails when a Dockerfile does what hadolint warns of; there are no exceptions."""
    needs("hadolint")
    done = subprocess.run(["hadolint", *dockerfiles], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", LOCKS)
def test_locks_are_complete_and_name_no_place(name: str) -> None:
    """Fails when a build would take a package unchecked, or from an address that only one machine can reach."""
    lock = (ROOT / f"deploy/requirements-{name}.lock").read_text("utf-8")
    requirements = re.split(r"\n(?! )", lock.strip())
    assert [each.partition(" ")[0] for each in requirements if "==" not in each or "--hash=sha256:" not in each] == []
    assert "://" not in lock


def test_gpu_lock_brings_cuda_and_the_others_do_not() -> None:
    """Fails when the CUDA variant would run on the CPU, or the CPU images grow by gigabytes."""
    brought = {name: (ROOT / f"deploy/requirements-{name}.lock").read_text("utf-8") for name in LOCKS}
    cuda = {name for name, lock in brought.items() if re.search(r"^nvidia-cu|^nvidia-cudnn", lock, re.M)}
    assert cuda == {"image-gpu"}


def test_bill_of_materials_is_valid(service_image: str) -> None:
    """Fails when the list is no CycloneDX document, or misses Python's or Debian's packages."""
    listed = make("sbom.py", service_image)
    python = ROOT / ".venv-check/bin/python"
    needs(str(python))
    done = subprocess.run([python, "-c", VALIDATE], input=listed, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    purls = [component["purl"] for component in json.loads(listed)["components"]]
    assert any(purl.startswith("pkg:pypi/bentoml@") for purl in purls)
    assert any(purl.startswith("pkg:deb/debian/libc6@") for purl in purls)


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`deploy/image.py`, imported as the script that it is."""
    monkeypatch.syspath_prepend(str(ROOT / "deploy"))
    return importlib.import_module("image")


def test_gpu_variant_is_built_with_its_own_lock(recipes: ModuleType, tmp_path: Path) -> None:
    """Fails when `GPU=1` makes the CPU image: it is not built here, where its packages would fill the disk."""
    recipes.stage(recipes.recipe("pocket", gpu=True), tmp_path)
    lock = (ROOT / "deploy/requirements-image-gpu.lock").read_text("utf-8")
    assert (tmp_path / "deploy/requirements-image.lock").read_text("utf-8") == lock
    dockerfile = tmp_path / "deploy/Dockerfile.template"
    assert "-r /locks/requirements-image.lock" in dockerfile.read_text("utf-8")


def test_an_image_for_models_named_at_the_start_has_torch(recipes: ModuleType, tmp_path: Path) -> None:
    """Fails when `WITH_TORCH=1` makes an image that cannot serve what it downloads."""
    made = recipes.recipe("pocket", gpu=False, torch=True)
    recipes.stage(made, tmp_path)
    lock = (tmp_path / "deploy/requirements-image.lock").read_text("utf-8")
    assert (made.model, made.torch) == (None, TORCH_VERSION)
    assert lock == (ROOT / "deploy/requirements-image-torch.lock").read_text("utf-8")


def test_a_hub_model_is_baked_under_its_name(recipes: ModuleType, tmp_path: Path) -> None:
    """Fails when a baked model is called otherwise than its id: by its last part, or its commit in the hub's cache."""
    model = ModelFolder(POCKET, "someone/pocket", json.loads((POCKET / "config.json").read_text("utf-8")))
    recipes.stage(recipes.Recipe(recipes.LOCK, model), tmp_path)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PARLEY_")}
    told = [
        sys.executable,
        "-c",
        "import baked, service; print(service.settings.model, service.settings.served_model_name)",
    ]
    model, name = subprocess.check_output(told, cwd=tmp_path, env=environment, text=True).split()
    assert name == "someone/pocket"
    assert resolve(model, tmp_path).exported(None)


def test_another_model_is_baked_in(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when an image of MODEL=... asks a hub, cannot read its files or lacks its export."""
    mine, cache = tmp_path / "mine", tmp_path / "cache"
    shutil.copytree(POCKET, mine, ignore=shutil.ignore_patterns("openvino"))
    export: Path = resolve(str(mine), cache).exports / "openvino"  # type: ignore[operator]
    shutil.copytree(POCKET / "openvino", export)
    (mine / "model.safetensors").chmod(0o600)  # as safetensors writes them
    export.chmod(0o700)  # as `parley convert` leaves it
    monkeypatch.setenv("PARLEY_CACHE", str(cache))
    make("image.py", f"--model={mine}", "--image=localhost/parley:baked")
    (model,) = alone("localhost/parley:baked")
    assert (model["id"], model["engine"]) == ("mine", "openvino")


def test_an_encoder_decoder_model_brings_torch(recipes: ModuleType, tmp_path: Path) -> None:
    """Fails when `MODEL=` with the kind of model that Parley began with makes an image without its engine's library."""
    made = recipes.recipe(str(build_blenderbot(tmp_path / "blenderbot")), gpu=False)
    recipes.stage(made, tmp_path / "context")
    lock = (tmp_path / "context/deploy/requirements-image.lock").read_text("utf-8")
    assert made.torch == TORCH_VERSION
    assert lock == (ROOT / "deploy/requirements-image-torch.lock").read_text("utf-8")


if SOAK:  # its layers are more than a gigabyte: minutes on a slow disk

    def test_an_encoder_decoder_model_answers(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Fails when the image with torch cannot be built behind a mirror, or cannot load its model."""
        blenderbot = build_blenderbot(tmp_path / "blenderbot", num_beams=1, max_length=8)
        with index_of_torch(tmp_path / "torch", monkeypatch):
            make("image.py", f"--model={blenderbot}", "--image=localhost/parley:torch")
        (model,) = alone("localhost/parley:torch")
        assert (model["id"], model["engine"]) == ("blenderbot", "seq2seq")


@contextmanager
def index_of_torch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The wheel of torch that this machine's pip takes, where a build's pip finds it, wherever it came from."""
    lines = ["pip", "download", "--quiet", "--no-deps", f"--dest={folder}", f"torch=={TORCH_VERSION}"]
    subprocess.run([sys.executable, "-m", *lines], check=True)
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        conf = folder / "pip.conf"
        conf.write_text(f"[global]\nfind-links = http://127.0.0.1:{server.server_port}/\n")
        monkeypatch.setenv("PIP_CONF", str(conf))
        yield
        server.shutdown()


def alone(image: str) -> Any:
    """The models that an image offers, once it has answered without any network."""
    run = ["run", "--detach", "--replace", "--name=parley-alone", *ISOLATED, "--env=PARLEY_ALLOW_ANONYMOUS=true", image]
    podman(*run)
    try:
        return json.loads(podman("exec", "parley-alone", "python", "-c", ASK))["data"]
    finally:
        podman("rm", "--force", "--time=0", "parley-alone")


def test_a_missing_model_is_one_line() -> None:
    """Fails when a mistyped MODEL ends in a traceback, or after a long build."""
    command = [sys.executable, str(ROOT / "deploy/image.py"), "--model=no such model"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("parley: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_failed_build_is_no_success(service_image: str) -> None:
    """Fails when yesterday's image of the same name is taken for the one that could not be built, and pushed."""
    command = [sys.executable, str(ROOT / "deploy/image.py"), f"--image={service_image}"]
    missing = {**os.environ, "BASE_IMAGE": "localhost/no-such-base:latest"}
    done = subprocess.run(command, cwd=ROOT, env=missing, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"parley: podman could not build {service_image}"


def test_the_tool_that_was_chosen_is_used() -> None:
    """Fails when images land in the store of another tool than the one that runs them."""
    command = [sys.executable, str(ROOT / "deploy/push.py"), "registry.invalid", "localhost/parley:latest"]
    for name, said in (
        ("nerdctl", "CONTAINER_TOOL='nerdctl': name one of podman, buildah, docker"),
        ("docker", "no container tool found; install docker"),
    ):
        chosen = {**os.environ, "CONTAINER_TOOL": name, "PATH": "/nonexistent"}
        done = subprocess.run(command, cwd=ROOT, env=chosen, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (1, f"parley: {said}\n")
