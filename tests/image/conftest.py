"""What the image tests share: a base image, the two images under test, and a place for their figures."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.image import debian
from tests.image.podman import podman, use_own_settings
from tests.image.registry import loopback_registry

ROOT = Path(__file__).resolve().parents[2]
BASE = "docker.io/library/python:3.11-slim"
BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
PULL_SECONDS = 120
PACKAGES = "ca-certificates,python3,python3-venv,python3-pip,python-is-python3"

Note = Callable[[str, object], None]


@pytest.fixture(scope="session", autouse=True)
def settings(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Podman works on this machine, and the images are built with the certificates that this machine trusts."""
    needs("podman")
    use_own_settings(tmp_path_factory.mktemp("containers"))
    os.environ["CONTAINER_TOOL"] = "podman"
    os.environ["BENTOML_HOME"] = str(tmp_path_factory.mktemp("bentoml"))
    if bundle := next((path for path in BUNDLES if Path(path).is_file()), None):
        os.environ.setdefault("CA_BUNDLE", bundle)


@pytest.fixture(scope="session")
def note() -> Iterator[Note]:
    """Keeps a figure: printed, and written to `artifacts/image.json` at the end."""
    figures: dict[str, object] = {}

    def keep(name: str, value: object) -> None:
        figures[name] = value
        print(f"\n{name}: {value}")

    yield keep
    path = ROOT / "artifacts" / "image.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n")


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a registry on loopback; one for all tests, so that a layer is sent there once."""
    with loopback_registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture(scope="session")
def base() -> str:
    """The base image: the public one where it can be had, else a stand-in of the same Python from Debian's packages."""
    image = os.environ.get("BASE_IMAGE", BASE)
    if subprocess.run(["podman", "image", "exists", image], check=False).returncode and not _pulled(image):
        podman("import", debian.root("python-3.11", "bookworm", PACKAGES), image)  # its Python is 3.11
    return image


def _pulled(image: str) -> bool:
    try:
        pull = subprocess.run(["podman", "pull", "--quiet", image], timeout=PULL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return pull.returncode == 0


def make(script: str, *arguments: str) -> str:
    """What a build script prints at its end."""
    nice = ["nice", "-n", "5"] if shutil.which("nice") else []
    command = [*nice, sys.executable, str(ROOT / "deploy" / script), *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="session")
def service_image(base: str, note: Note) -> str:
    """The service's image, as `make image` builds it."""
    image = "localhost/parley:test"
    note("service image", _largest(make("image.py", f"--image={image}")))
    return image


@pytest.fixture(scope="session")
def client_image(base: str, note: Note) -> str:
    """The Streamlit client's image."""
    image = "localhost/parley-client:test"
    note("client image", _largest(make("client_image.py", f"--image={image}")))
    return image


def _largest(printed: str) -> list[str]:
    """The report at the end of a build."""
    lines = printed.splitlines()
    start = max(number for number, line in enumerate(lines) if line.endswith("of which"))
    return [" ".join(line.split()) for line in lines[start:]]
