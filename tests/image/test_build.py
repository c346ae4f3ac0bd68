"""How the images are built: their Dockerfiles, their locks, what is listed of them, and models of one's own."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.image.conftest import ROOT, make
from tests.image.podman import Container, fetch, podman, running

LOCKS = ["image", "image-torch", "image-gpu", "client"]
VALIDATE = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(sys.stdin.read())
sys.exit(fault and str(fault))
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


def test_another_model_is_baked_in(base: str, tmp_path: Path) -> None:
    """Fails when an image built with MODEL=... still asks a hub, or answers with the embedded model."""
    mine = tmp_path / "mine"
    subprocess.run(["cp", "-r", ROOT / "models/pocket", mine], check=True)
    image = "localhost/parley:baked"
    make("image.py", f"--model={mine}", f"--image={image}")
    baked = Container(image, "parley-baked", "127.0.0.26")
    with running(baked):
        models = json.loads(fetch(f"{baked.url}/v1/models"))
    assert [model["id"] for model in models["data"]] == ["mine"]


def test_a_missing_model_is_one_line() -> None:
    """Fails when a mistyped MODEL ends in a traceback, or after a long build."""
    command = [sys.executable, str(ROOT / "deploy/image.py"), "--model=no such model"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("parley: ")
    assert len(done.stderr.splitlines()) == 1
