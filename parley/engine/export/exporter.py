"""Exports a decoder-only model for the OpenVINO engine: once, whole or not at all, in programs of their own."""

import fcntl
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from parley.engine.export.environment import Environment, variables
from parley.engine.export.steps import Steps
from parley.engine.model import ModelError, ModelFolder, export_folder

WEIGHTS = {"float32": "fp32", "bfloat16": "fp32", "int8": "int8"}
"""The engine's precisions in optimum-intel's words; bfloat16 is computed from full weights."""

_PARTIAL = ".partial-"


def export(folder: ModelFolder, dtype: str, cache: Path) -> Path:
    """The export of a model, made now if there is none.

    Args:
        folder: the model, as `resolve` gave it: inspected, so that nothing in it asks for code of its own.
        dtype: the engine's precision: float32, bfloat16 or int8.
        cache: where the environment is made; the export goes to `folder.exports`.

    Raises:
        ModelError: one line with the cause.
    """
    if fault := _fault(folder, dtype):
        raise ModelError(f"{folder.name} cannot be exported for the openvino engine: {fault}")
    assert folder.exports is not None
    folder.exports.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "export.lock") as lock:
        if found := folder.exported(dtype):
            return found
        steps = Steps(folder.name, cache / "export.log", lock)
        environment = Environment(cache)
        environment.make(steps)
        return _export(folder, dtype, environment, steps, folder.exports)


def _fault(folder: ModelFolder, dtype: str) -> str:
    """Why the engine could not serve an export, or an empty string."""
    if folder.encoder_decoder:
        return "it is an encoder-decoder model, and the engine for it, seq2seq, needs no export"
    if dtype not in WEIGHTS:
        return f"there is no {dtype}; set PARLEY_DTYPE to one of {', '.join(WEIGHTS)}"
    if not (folder.path / "tokenizer.json").is_file():
        return "it has no tokenizer.json; set PARLEY_ENGINE=transformers"
    return ""


def _export(folder: ModelFolder, dtype: str, environment: Environment, steps: Steps, home: Path) -> Path:
    for left_over in home.glob(f"{_PARTIAL}*"):
        shutil.rmtree(left_over)
    partial = Path(tempfile.mkdtemp(dir=home, prefix=_PARTIAL))
    partial.chmod(0o755)  # other users may read it, as they may what is downloaded
    try:
        command = [environment.program("optimum-cli"), "export", "openvino", "--model", str(folder.path)]
        command += ["--task", "text-generation-with-past", "--weight-format", WEIGHTS[dtype], str(partial)]
        # The model is here, so no hub is asked; OpenVINO's telemetry sends nothing where CI is set.
        offline = variables(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", CI="true")
        steps.run(f"exporting it in {dtype}", offline, command)
        if not (partial / "openvino_model.bin").is_file():
            raise ModelError(f"{folder.name}: the exporter wrote no openvino_model.bin")
        return partial.rename(export_folder(home, dtype))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """One export at a time: they share an environment, and each takes all of the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("parley convert: waiting for another export to end", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file
