"""Where torch puts a model on this machine, and how much memory its cache may take there."""

import torch

from parley.engine.hardware import memory_limit
from parley.engine.model import ModelError
from parley.engine.runner import Placement

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device(placement: Placement) -> torch.device:
    """The device asked for, or the best one here.

    Raises:
        ModelError: when this machine has no such device.
    """
    if placement.device is None:
        return torch.device(_best_device())
    try:
        wanted = torch.device(placement.device)
        torch.empty(1, device=wanted)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {placement.device!r} is not on this machine; leave it unset, or use cpu") from error
    return wanted


def dtype(placement: Placement, where: torch.device, stored: str) -> torch.dtype:
    """The precision asked for, or the one that the device computes fast.

    On CPUs that multiply bfloat16 in hardware, weights stored so are served so, at two to four times the speed of
    float32; other weights keep float32 there, so that no answer changes for speed unasked.

    Args:
        placement: what is asked for.
        where: the device.
        stored: the name of the precision that the weights have on disk.

    Raises:
        ModelError: for a precision that torch cannot serve.
    """
    if placement.dtype is not None and placement.dtype not in _DTYPES:
        raise ModelError(f"dtype {placement.dtype!r} is not served by torch here; use one of {', '.join(_DTYPES)}")
    if placement.dtype is not None:
        return _DTYPES[placement.dtype]
    if where.type == "cpu":
        return torch.bfloat16 if stored == "bfloat16" and _multiplies_bfloat16() else torch.float32
    # Models trained in bfloat16, Gemma for one, overflow float16.
    return torch.bfloat16 if where.type == "cuda" or stored == "bfloat16" else torch.float16


def cache_bytes(where: torch.device) -> int:
    """Memory that the key-value cache may take: most of what is free on a GPU, a share of what this container has."""
    if where.type == "cuda":
        return int(torch.cuda.mem_get_info(where)[0] * 0.7)
    if where.type == "mps":
        return int(torch.mps.recommended_max_memory() * 0.3)
    return int(memory_limit() * 0.15)


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _multiplies_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
