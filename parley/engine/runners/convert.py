"""Converts a folder of pickled weights to safetensors: `python -m parley.engine.runners.convert SOURCE TARGET`.

A pickle can name any function to call, so this runs as a process of its own, with two guards. torch's `weights_only`
unpickler builds tensors and plain containers and refuses everything else. And before torch is even imported, the
process leaves the network: on Linux it moves to an empty network namespace, where the kernel allows that to its user.
Where it does not (other systems, some containers) the first guard stands alone, and stderr says so.

Prints one line to stderr and exits with 1 when the weights are refused; the target then does not exist.
"""

import ctypes
import fcntl
import glob
import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from parley.startup import one_line

LOCK = "convert.lock"

_CLONE_NEWNET = 0x40000000
_CLONE_NEWUSER = 0x10000000
"""From Linux's `sched.h`; a new user namespace lets an ordinary user have a network namespace too."""


class Refused(Exception):
    """The weights are not plain tensors. The message is one line."""


def main(arguments: list[str]) -> int:
    """The exit status of one conversion."""
    source, target = map(Path, arguments)
    if not leave_network():
        print("this system lets no process leave the network; only torch's weights_only loader guards", file=sys.stderr)
    try:
        convert(source, target)
    except (Refused, OSError) as error:
        print(one_line(error), file=sys.stderr)
        return 1
    return 0


def leave_network() -> bool:
    """Moves this process to a network namespace without interfaces; False where the kernel refuses.

    Must come before any thread starts: a process of several threads cannot enter a user namespace.
    """
    if not sys.platform.startswith("linux"):
        return False
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    return any(unshare(flags) == 0 for flags in (_CLONE_NEWNET, _CLONE_NEWUSER | _CLONE_NEWNET))


def convert(source: Path, target: Path) -> None:
    """Writes `target` whole, or not at all: into a folder beside it, which is then renamed. One process at a time does.

    Raises:
        Refused: when a file holds anything but tensors.
        OSError: when a file cannot be read or written.
    """
    with (target.parent / LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            _convert_alone(source, target)


def _convert_alone(source: Path, target: Path) -> None:
    for left_over in target.parent.glob(f".{glob.escape(target.name)}-*"):
        shutil.rmtree(left_over)
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    partial.chmod(0o755)  # other users may read it, as they may what is downloaded
    try:
        for path in source.iterdir():
            if (
                path.is_file()
                and path.suffix in {".json", ".txt", ".model", ".jinja"}
                and "pytorch_model" not in path.name
            ):
                shutil.copyfile(path, partial / path.name)
        _convert_weights(sorted(source.glob("pytorch_model*.bin")), partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _convert_weights(pickles: list[Path], folder: Path) -> None:
    """One safetensors file a pickle, so that no more than one is in memory, and an index over several."""
    from safetensors.torch import save_file  # only once the network is left

    weight_map: dict[str, str] = {}
    for number, pickle in enumerate(pickles, 1):
        tensors = _read(pickle)
        several = len(pickles) > 1
        name = f"model-{number:05}-of-{len(pickles):05}.safetensors" if several else "model.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    if len(pickles) > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _read(pickle: Path) -> dict[str, Any]:
    """The tensors of one file, by name, none of which shares memory with another.

    Tied weights are one storage under several names, which safetensors cannot say; each name gets a copy, and the
    model ties them again when it loads.
    """
    import torch  # only once the network is left

    try:
        # Only torch's newer, zipped files can be mapped instead of read.
        content = torch.load(pickle, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(pickle))
    except (UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise Refused(
            f"{pickle.name} is damaged or holds more than tensors, which is never run ({type(error).__name__}); "
            "ask its publisher for safetensors"
        ) from error
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise Refused(f"{pickle.name} is no plain list of named tensors; ask its publisher for safetensors")
    return {str(name): tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in content.items()}


if __name__ == "__main__":
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)  # would turn the guard off for whoever sets it
    sys.exit(main(sys.argv[1:]))
