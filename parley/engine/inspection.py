"""What makes a model folder unfit or unsafe to load, told without loading it.

Each check yields sentences that end with a way out; the first one is enough to refuse the folder. Cheap checks come
first, and none of them follows a link out of the folder.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Faults = Iterator[str]

_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)
_TEMPLATES = ("chat_template.jinja", "chat_template.json")


def has_safetensors(folder: Path) -> bool:
    """Whether transformers would find safetensors under the names it looks for."""
    return any((folder / name).exists() for name in ("model.safetensors", "model.safetensors.index.json"))


def needs_conversion(folder: Path) -> bool:
    """Whether the only weights are pickled ones."""
    return not has_safetensors(folder) and not _exported(folder) and bool(pickles(folder))


def pickles(folder: Path) -> list[Path]:
    """The pickled weights, whole or in shards. OpenVINO's `.bin` files are no pickles and have other names."""
    return sorted(folder.glob("pytorch_model*.bin"))


def faults(folder: Path) -> Faults:
    """What may not even be read further: links out of the folder, and requests to run code."""
    yield from _links(folder)
    yield from _code(folder)


def content_faults(folder: Path, encoder_decoder: bool) -> Faults:
    """What is missing or broken in a folder that is otherwise harmless."""
    if not any((folder / name).exists() for name in _TOKENIZERS):
        yield "no tokenizer in its folder; fetch the whole model"
    if not encoder_decoder and not _has_template(folder):
        yield "no chat template, so it is no chat model; use an instruction-tuned one, or add chat_template.jinja"
    if not has_safetensors(folder) and not _exported(folder):
        yield "no weights in its folder (model.safetensors); fetch the whole model"
    yield from _weights(folder)


def _exported(folder: Path) -> bool:
    """Whether there is an OpenVINO export beside the weights, or in place of them."""
    return any(folder.glob("openvino*/openvino_model.xml"))


def _links(folder: Path) -> Faults:
    """Links and special files. The hub's cache keeps content in `blobs`, two levels up from the snapshot."""
    homes = [folder.resolve()]
    if homes[0].parent.name == "snapshots":
        homes.append(homes[0].parent.parent / "blobs")
    for directory, subdirectories, files in os.walk(folder):
        for path in (Path(directory, name) for name in subdirectories + files):
            if path.is_symlink() and not any(path.resolve().is_relative_to(home) for home in homes):
                yield f"{path.name} is a link out of the model's folder; copy the file into it"
            elif not path.is_file() and not path.is_dir():
                yield f"{path.name} is not a regular file; fetch it anew"


def _code(folder: Path) -> Faults:
    if (folder / "adapter_config.json").exists():
        yield "it is an adapter, not a whole model; merge it into its base model first"
    for path in sorted(folder.glob("*config*.json")):
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            yield f"{path.name} cannot be read ({type(error).__name__}); fetch it anew"
        else:
            if not isinstance(content, dict):
                yield f"{path.name} is not a JSON object; fetch it anew"
            if _needs_no_code(path.name, content):
                content = {key: value for key, value in content.items() if key != "auto_map"}
            yield from _code_keys(path.name, content)


def _code_keys(name: str, content: Any) -> Faults:
    """Keys by which a config makes transformers import code, at any depth."""
    pending = [content]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += value.values()
            for key, inner in value.items():
                if _asks_for_code(key, inner):
                    yield f"{name} asks for code from elsewhere ({key}), which is never run; use a model without it"
        elif isinstance(value, list):
            pending += value


_OWN_CLASSES = {"phi3"}
"""Model types whose makers' folders name code of their own (`auto_map`) that transformers has long had a class for. It
takes that class, since every loader here says `trust_remote_code=False`."""


def _needs_no_code(name: str, content: Any) -> bool:
    return name == "config.json" and isinstance(content, dict) and str(content.get("model_type")) in _OWN_CLASSES


def _asks_for_code(key: str, value: Any) -> bool:
    if key.endswith("_implementation"):  # a hub id here downloads a compiled kernel
        return "/" in str(value)
    if key == "trust_remote_code":
        return value not in (False, None)
    return key == "auto_map" or key.endswith("_implementation_internal")


def _has_template(folder: Path) -> bool:
    if any((folder / name).exists() for name in _TEMPLATES):
        return True
    path = folder / "tokenizer_config.json"
    return path.exists() and bool(json.loads(path.read_bytes()).get("chat_template"))


def _weights(folder: Path) -> Faults:
    names: dict[str, set[str]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            names[path.name] = _tensor_names(path)
        except (OSError, ValueError) as error:
            yield f"{path.name} is damaged ({error}); fetch it anew"
    yield from _index(folder / "model.safetensors.index.json", names)


def _tensor_names(path: Path) -> set[str]:
    """Opens a safetensors file, which checks its header against its size and reads no tensor.

    Raises:
        ValueError: for anything that is not exactly the format.
    """
    from safetensors import SafetensorError, safe_open  # needed for torch models only

    try:
        with safe_open(path, framework="np") as file:
            return set(file.keys())
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _index(path: Path, names: dict[str, set[str]]) -> Faults:
    """The shards' index: every tensor it promises must be in a file of this very folder."""
    if not path.exists():
        return
    try:
        weight_map = json.loads(path.read_bytes())["weight_map"]
        missing = [tensor for tensor, file in weight_map.items() if tensor not in names.get(file, ())]
    except (OSError, ValueError, RecursionError, LookupError, AttributeError, TypeError) as error:
        yield f"{path.name} is damaged ({type(error).__name__}); fetch it anew"
    else:
        if missing:
            yield f"{path.name} names weights that are not there ({missing[0]}); fetch the whole model"
