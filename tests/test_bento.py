"""The Bento, as a stranger gets it: built from a copy, moved between stores, served with source and network gone."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import missing, needs

ROOT = Path(__file__).resolve().parents[1]
OFFLINE = ROOT / "tests" / "offline.py"
QUESTION = {"user_input": "Who is Batman?"}


def environment(home: Path) -> dict[str, str]:
    """A new user's: an empty home, and nothing of ours set."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "LC_ALL": "C.UTF-8", "BENTOML_DO_NOT_TRACK": "True"}


def run(command: Sequence[str | Path], home: Path, folder: Path, stdin: str | None = None) -> str:
    """What the command prints; its own account of a failure fails the test."""
    env = environment(home)
    done = subprocess.run(command, cwd=folder, env=env, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the installed packages, in which `import parley` does not find this checkout.

    The checkout is installed as editable, by a .pth file in site-packages; a folder that is itself named by a .pth file
    does not get its own .pth files read.
    """
    folder = tmp_path_factory.mktemp("python")
    venv.create(folder, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    interpreter = folder / "bin" / "python"
    command = [str(interpreter), "-c", "import parley"]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert "No module named 'parley'" in found.stderr
    return interpreter


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, python: Path) -> Iterator[Path]:
    """A home whose Bento store holds one Bento, built from a copy of the tree that is gone by now."""
    home, tree = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("tree")
    unneeded = shutil.ignore_patterns(".git", ".venv*", ".*_cache", "build", "artifacts", "out")
    shutil.copytree(ROOT, tree, ignore=unneeded, dirs_exist_ok=True)
    run([python, "-m", "bentoml", "build"], home, tree)
    shutil.rmtree(tree)
    yield home
    shutil.rmtree(home)


def source(home: Path) -> Path:
    """The Bento's own files in the store."""
    (tag,) = (path for path in (home / "bentoml" / "bentos" / "parley").iterdir() if path.is_dir())
    return tag / "src"


def answer(python: Path, home: Path, tag: str, folder: Path) -> object:
    """What the served Bento says to `QUESTION`, with nothing but loopback to talk to."""
    needs("unshare")
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode:
        missing("this machine lets no process of a user leave the network")
    command = ["unshare", "-rn", sys.executable, str(OFFLINE), str(python), tag, "/chat"]
    return json.loads(run(command, home, folder, stdin=json.dumps(QUESTION)))


def test_list_shows_the_bento(python: Path, home: Path, tmp_path: Path) -> None:
    """Fails when `bentoml build` names the Bento other than the documentation does."""
    (bento,) = json.loads(run([python, "-m", "bentoml", "list", "-o", "json"], home, tmp_path))
    assert bento["tag"].startswith("parley:")


def test_bento_holds_what_serving_needs_and_nothing_else(home: Path) -> None:
    """Fails when tests, training data, the client or git's files creep into every image, or a lock is missing."""
    top = {path.name for path in source(home).iterdir()}
    assert top == {"service.py", "parley", "models", "deploy", "bentofile.yaml"}
    assert [path.name for path in (source(home) / "deploy").iterdir()] == ["requirements-image.lock"]
    assert (source(home) / "models" / "pocket" / "config.json").is_file()


@pytest.mark.parametrize(
    ("name", "engine"),
    [("image", "openvino"), ("image-torch", "openvino"), ("image-torch", "torch"), ("image-gpu", "torch")],
)
def test_lock_has_every_dependency(name: str, engine: str) -> None:
    """Fails when a package that `pyproject.toml` asks for, the exporter of traces too, is not locked: `make lock`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["serve"] + extras["otel"] + extras[engine]
    apart = {"torch"} if name == "image-torch" else set()  # installed by itself: Dockerfile.template
    asked = {Requirement(each).name for each in wanted} - apart
    lock = (ROOT / "deploy" / f"requirements-{name}.lock").read_text("utf-8")
    locked = [line.partition("==")[0] for line in lock.splitlines() if "==" in line]
    assert set(map(canonicalize_name, asked)) <= set(map(canonicalize_name, locked))


def test_bento_tells_no_one(home: Path) -> None:
    """Fails when an image built from the Bento would report its use to BentoML's makers."""
    info = yaml.safe_load((source(home).parent / "bento.yaml").read_text("utf-8"))
    assert {"name": "BENTOML_DO_NOT_TRACK", "value": "True", "stage": "all"} in info["envs"]


def test_serves_from_the_store_without_source_or_network(python: Path, home: Path, tmp_path: Path) -> None:
    """Fails when the Bento reads a file of the checkout, or needs a hub, an index or any other host to answer."""
    reply = answer(python, home, "parley:latest", tmp_path)
    assert isinstance(reply, str)
    assert reply.strip()


def test_export_and_import_round_trip(python: Path, home: Path, tmp_path: Path) -> None:
    """Fails when a Bento that was handed over as one file does not serve in the other home."""
    archive, other = tmp_path / "parley.bento", tmp_path / "other"
    other.mkdir()
    run([python, "-m", "bentoml", "export", "parley:latest", archive], home, tmp_path)
    run([python, "-m", "bentoml", "import", archive], other, tmp_path)
    assert answer(python, other, "parley:latest", tmp_path) == answer(python, home, "parley:latest", tmp_path)
