"""A built model in the formats of other engines, each made once, by that engine's own tools."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.contestant import NotStarted

OPTIMUM = Path(".venv-export/bin/optimum-cli")
LLAMA = Path(".venv-llama")
"""What `make bench-peers` sets up; relative to the repository."""

_OPENVINO_WEIGHTS = {
    "float32": ("openvino", "fp32"),
    "bfloat16": ("openvino", "fp32"),
    "int8": ("openvino-int8", "int8"),
}


def openvino(folder: Path, dtype: str) -> Path:
    """The OpenVINO export beside a model's weights.

    Raises:
        NotStarted: when the exporter is missing or fails.
    """
    name, weights = _OPENVINO_WEIGHTS[dtype]
    target = folder / name
    if not target.is_dir():
        _need(OPTIMUM)
        task = ["--task", "text-generation-with-past", "--weight-format", weights]
        _run([str(OPTIMUM), "export", "openvino", "--model", str(folder), *task, str(target)], target)
    return target


def gguf(folder: Path) -> Path:
    """The model as llama.cpp reads it, in Q8_0.

    Raises:
        NotStarted: when llama.cpp is missing or its converter fails.
    """
    target = folder / "model-q8_0.gguf"
    if not target.is_file():
        _need(LLAMA / "bin" / "llama-server")
        _run([sys.executable, "-m", "bench.peers.to_gguf", str(LLAMA / "llama.cpp"), str(folder), str(target)], target)
    return target


def _need(program: Path) -> None:
    if not program.exists():
        raise NotStarted(f"{program} is not installed; `make bench-peers` sets it up")


def _run(command: Sequence[str], target: Path) -> None:
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode != 0 or not target.exists():
        cause = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise NotStarted(f"{target.name} could not be made: {cause}")
