"""Which runner loads which model: chosen in the worker, carried out in the engine process."""

import importlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from parley.engine.inspection import has_safetensors
from parley.engine.model import ModelError, ModelFolder
from parley.engine.runner import Placement, Runner

LIBRARIES = {"openvino": "openvino_genai", "transformers": "torch", "seq2seq": "torch"}
"""The package that each engine of a model folder needs."""


class Launch(Struct, frozen=True):
    """Everything that the engine process is told at its start."""

    engine: str
    reason: str
    name: str
    folder: str | None
    """The path of the model's folder; None for an engine without a model."""
    placement: Placement
    exports: str | None = None
    """The path of the folder of its OpenVINO exports."""


class Choice(Struct, frozen=True):
    """An engine and why it was chosen, in one sentence."""

    engine: str
    reason: str


def has_library(engine: str) -> bool:
    """Whether the package that an engine needs is installed."""
    return importlib.util.find_spec(LIBRARIES[engine]) is not None


def choose(
    asked: str,
    folder: ModelFolder,
    device: str | None,
    dtype: str | None = None,
    installed: Callable[[str], bool] = has_library,
) -> Choice:
    """The engine for a model.

    Args:
        asked: the engine's name, or `auto`.
        folder: the model.
        device: the device asked for, if one is.
        dtype: the precision asked for, if one is.
        installed: whether an engine's library is there.

    Raises:
        ModelError: when the engine that was asked for does not fit the model, or its library is not installed.
    """
    choice = _automatic(folder, device, dtype, installed) if asked == "auto" else Choice(asked, "set by PARLEY_ENGINE")
    if choice.engine in ("openvino", "transformers") and folder.encoder_decoder:
        raise ModelError(
            f"PARLEY_ENGINE={asked}: {folder.name} is an encoder-decoder model; the engine for it is seq2seq"
        )
    if choice.engine == "seq2seq" and not folder.encoder_decoder:
        raise ModelError(
            f"PARLEY_ENGINE={asked}: {folder.name} is a decoder-only model; the engines for it are "
            "openvino and transformers"
        )
    if choice.engine == "openvino" and device not in (None, "cpu"):
        raise ModelError(
            f"PARLEY_ENGINE={asked}: OpenVINO serves on the CPU, and the device asked for is {device}; "
            "the engine for that is transformers"
        )
    if choice.engine != "openvino" and not has_safetensors(folder.path):
        way_out = "PARLEY_ENGINE=openvino" if folder.exported(None) else "PARLEY_DTYPE=int8"
        raise ModelError(
            f"{folder.name} holds an OpenVINO export and no weights, as {choice.engine} needs: set {way_out}"
        )
    if not installed(choice.engine):
        library = LIBRARIES[choice.engine]
        raise ModelError(f"the {choice.engine} engine needs {library}, which is not installed: pip install {library}")
    return choice


def _automatic(folder: ModelFolder, device: str | None, dtype: str | None, installed: Callable[[str], bool]) -> Choice:
    if folder.encoder_decoder:
        return Choice("seq2seq", "an encoder-decoder model")
    if device not in (None, "cpu"):
        return Choice("transformers", f"OpenVINO serves on the CPU, and the device asked for is {device}")
    if dtype == "int8":
        return Choice("openvino", "int8 for a decoder-only model is OpenVINO's alone")
    if not installed("openvino"):
        return Choice("transformers", "openvino-genai is not installed")
    if dtype == "float16":
        return Choice("transformers", "OpenVINO has no float16 on the CPU")
    if folder.exported(dtype) is None:
        return Choice("transformers", "there is no OpenVINO export; `parley convert` makes one, which is faster")
    return Choice("openvino", "a decoder-only model with an OpenVINO export, on a CPU")


def load_runner(launch: Launch) -> Runner:
    """Loads the model; in the engine process only."""
    module = importlib.import_module(f"parley.engine.runners.{launch.engine}")
    runner: Runner = module.load(_folder(launch), launch.placement, launch.reason)
    return runner


def _folder(launch: Launch) -> ModelFolder | None:
    """The folder as the worker resolved it; it was inspected there."""
    if launch.folder is None:
        return None
    path = Path(launch.folder)
    config = json.loads((path / "config.json").read_text("utf-8"))
    return ModelFolder(path, launch.name, config, Path(launch.exports) if launch.exports else None)
