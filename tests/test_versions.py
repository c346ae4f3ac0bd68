"""A version that stands in several files is the same in all of them."""

import re
import tomllib

import pytest

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))

TORCH = {
    "Makefile": r"^TORCH := (\S+)$",
    "deploy/image.py": r'^TORCH_VERSION = "(\S+)"$',
    "deploy/requirements-image-gpu.lock": r"^torch==(\S+) \\$",
    "parley/engine/export/environment.py": r'^TORCH = "torch==(\S+)"$',
    "tests/image/test_build.py": r'^TORCH_VERSION = "(\S+)"$',
}
"""Where else than in pyproject.toml the version of torch stands, and how."""


def torch_version() -> str:
    """The one that uv is told of."""
    (told,) = PROJECT["tool"]["uv"]["dependency-metadata"]
    assert told["name"] == "torch"
    return str(told["version"])


@pytest.mark.parametrize("extra", ["torch", "train"])
def test_extras_ask_for_the_one_torch(extra: str) -> None:
    """Fails when an extra asks for another torch than uv has the dependencies of."""
    assert f"torch=={torch_version()}" in PROJECT["project"]["optional-dependencies"][extra]


@pytest.mark.parametrize("path", TORCH)
def test_torch_has_one_version(path: str) -> None:
    """Fails when torch is raised in one file, and an image, an export or a test goes on with the one before."""
    assert re.findall(TORCH[path], (ROOT / path).read_text("utf-8"), re.MULTILINE) == [torch_version()]
