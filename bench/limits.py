"""Limits: what this machine could reach at all.

A decode step reads every weight once and does 2 operations a weight for each answer: b answers together get at most
b / max(bytes / bandwidth, 2 b parameters / operations a second) tokens a second. Attention, the cache and sampling come
on top and are left out. Bandwidth is measured with a matrix of the weights' size, so that weights that fit in the
processor's cache are read at its speed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.shapes import parameters

SIDE = 1536
REPEATS = 7
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class Limits:
    """Of one model, by precision. bfloat16's operations stand for int8's, which torch cannot time alone."""

    parameters: int
    bandwidth: dict[str, float]
    """Bytes a second, reading as many bytes as the weights have."""
    operations: dict[str, float]
    """A second."""
    tokens: dict[str, dict[int, float]]
    """A second, by users."""


def limits(folder: Path, batches: tuple[int, ...]) -> Limits:
    """Measures this machine and computes the limits of a built model."""
    count = parameters(folder)
    bandwidth = {name: _bandwidth(count * size) for name, size in BYTES.items()}
    operations = {"float32": _operations(torch.float32), "bfloat16": _operations(torch.bfloat16)}
    operations["int8"] = operations["bfloat16"]
    tokens = {
        name: {batch: decode_limit(count, size, batch, bandwidth[name], operations[name]) for batch in batches}
        for name, size in BYTES.items()
    }
    return Limits(count, bandwidth, operations, tokens)


def decode_limit(parameters: int, weight_bytes: int, batch: int, bandwidth: float, operations: float) -> float:
    """Most tokens a second of a batch, from bytes a second and operations a second."""
    return batch / max(parameters * weight_bytes / bandwidth, 2 * batch * parameters / operations)


def _bandwidth(size: int) -> float:
    columns = 1024
    matrix = torch.ones(max(1, size // 4 // columns), columns)
    vector = torch.ones(columns)
    return matrix.numel() * 4 / _fastest(lambda: torch.mv(matrix, vector))


def _operations(dtype: torch.dtype) -> float:
    square = torch.ones(SIDE, SIDE, dtype=dtype)
    return 2 * SIDE**3 / _fastest(lambda: torch.mm(square, square))


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of a few goes: what the machine can do when nothing else runs."""
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
