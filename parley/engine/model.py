"""The model on disk: a name becomes a local folder that every runner can load.

A folder that comes out of `resolve` has been inspected: nothing in it asks for code of its own, its weights are
safetensors (or an OpenVINO export) of the size they claim, and it has a config, a tokenizer and a chat template if it
needs one. Imports neither torch nor transformers.
"""

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parley.engine import inspection
from parley.startup import one_line

log = logging.getLogger(__name__)

POCKET = Path(__file__).resolve().parents[2] / "models" / "pocket"
"""The embedded model, in a checkout and in a Bento alike."""

_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "model*.safetensors"]
_LONGEST_CAUSE = 400
_READ = {".json", ".txt", ".model", ".jinja", ".safetensors", ".bin"}
"""Endings of the files that a model is read from."""
_ENCODER_DECODERS = {"bart", "blenderbot", "blenderbot-small", "mbart", "mt5", "pegasus", "t5"}


class ModelError(Exception):
    """The model cannot be used. The message is one line: the model, the cause and the way out."""


@dataclass(frozen=True)
class ModelFolder:
    """A local model folder, inspected and ready for a runner."""

    path: Path
    name: str
    """What `GET /v1/models` calls it: `pocket`, the hub id, or the folder's name."""
    config: dict[str, Any]
    """`config.json`, as it is."""
    exports: Path | None = None
    """Where OpenVINO exports are kept that do not lie beside the weights; they need not exist."""

    @property
    def model_type(self) -> str:
        """transformers' name of the architecture, such as `llama`."""
        return str(self.config.get("model_type", ""))

    @property
    def encoder_decoder(self) -> bool:
        """True for Blenderbot's kind; their configs may leave the flag to the architecture's default."""
        return bool(self.config.get("is_encoder_decoder", self.model_type in _ENCODER_DECODERS))

    @property
    def stored_dtype(self) -> str:
        """The precision that the weights have on disk, such as `bfloat16`; empty where the config does not tell."""
        return str(self.config.get("dtype", self.config.get("torch_dtype", "")))

    def exported(self, dtype: str | None) -> Path | None:
        """The OpenVINO export of a precision, beside the weights or where exports are kept; None if there is none."""
        homes = filter(None, (self.path, self.exports))
        found = (export_folder(home, dtype or "float32") for home in homes)
        return next((folder for folder in found if (folder / "openvino_model.xml").is_file()), None)


def export_folder(home: Path, dtype: str) -> Path:
    """Where the export of a precision lies: int8 weights have one of their own."""
    return home / ("openvino-int8" if dtype == "int8" else "openvino")


def resolve(model: str, cache: Path, pocket: Path = POCKET) -> ModelFolder:
    """Finds, downloads or converts a model, and inspects it.

    Args:
        model: `pocket`, a local folder, or a Hugging Face id, `owner/name` or `owner/name@revision`.
        cache: where converted weights and exports are kept; downloads stay in the hub's own cache.
        pocket: the folder of the embedded model.

    Raises:
        ModelError: when there is no such model, or it is unfit or unsafe to load.
    """
    name, path = _locate(model, pocket)
    config = _read_config(name, path)
    _refuse_faults(name, inspection.faults(path))
    if inspection.needs_conversion(path):
        path = _convert(name, path, cache)
    folder = ModelFolder(path, name, config, cache / "exports" / _cached_name(name, path))
    _refuse_faults(name, inspection.content_faults(path, folder.encoder_decoder))
    return folder


def _locate(model: str, pocket: Path) -> tuple[str, Path]:
    """The name to show and the folder, downloaded if need be."""
    if model == "pocket":
        return model, pocket
    try:
        path = Path(model).expanduser()
    except RuntimeError:  # a home of nobody's
        path = Path(model)
    if path.is_dir():
        return path.resolve().name, path.resolve()
    if match := _HUB_ID.fullmatch(model):
        return match["repo"], _download(match["repo"], match["revision"])
    raise ModelError(f"model {model!r}: no such folder, and not a Hugging Face id; name a folder, an id or 'pocket'")


def _download(repo: str, revision: str | None) -> Path:
    """The snapshot folder in the hub's cache. Pickled weights are fetched only where there is nothing better."""
    from huggingface_hub import snapshot_download  # slow to import, and seldom needed

    def fetch(patterns: list[str]) -> Path:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))

    try:
        path = fetch(_HUB_FILES)
        return path if inspection.has_safetensors(path) else fetch([*_HUB_FILES, "pytorch_model*.bin"])
    except Exception as error:
        # The hub's client has classes of its own, and lets through those of two libraries for HTTP and of a third.
        cause = one_line(error)[:_LONGEST_CAUSE]
        raise ModelError(
            f"model {repo!r}: cannot be downloaded: {cause} "
            "(check the name, its licence, the network and HF_TOKEN, or use a local folder or 'pocket')"
        ) from error


def _read_config(name: str, path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_bytes())
    except FileNotFoundError:
        raise ModelError(f"model {name!r}: no config.json in its folder; is it a transformers model?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"model {name!r}: config.json cannot be read ({type(error).__name__}); fetch it anew"
        ) from error
    if not isinstance(config, dict):
        raise ModelError(f"model {name!r}: config.json is not a JSON object; fetch it anew")
    return config


def _refuse_faults(name: str, faults: inspection.Faults) -> None:
    if fault := next(faults, None):
        raise ModelError(f"model {name!r}: {fault}")


def _convert(name: str, source: Path, cache: Path) -> Path:
    """A copy of the folder with safetensors in place of pickled weights, made once, by a child process."""
    target = cache / _cached_name(name, source)
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    log.info("model %r has pickled weights; converting them to safetensors in %s, once", name, target)
    command = [sys.executable, "-m", "parley.engine.runners.convert", str(source), str(target)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    child = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    if child.returncode != 0:
        said = child.stderr.strip().split("\n")[-1] or f"the converter ended with {child.returncode}"
        killed = f"signal {-child.returncode} ended the converter; is there enough memory?"
        cause = killed if child.returncode < 0 else said
        raise ModelError(f"model {name!r}: its pickled weights cannot be converted: {cause}")
    for line in child.stderr.splitlines():
        log.warning("converting model %r: %s", name, line)
    return target


def _cached_name(name: str, source: Path) -> str:
    return f"{name.replace('/', '--')}-{_digest(source)}"


def _digest(source: Path) -> str:
    """Changes when a file that is read does; sizes and times stand for content, which may be many gigabytes."""
    files = [path for path in source.iterdir() if path.suffix in _READ and path.is_file()]
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((str(source), sorted(facts))).encode()).hexdigest()[:12]
