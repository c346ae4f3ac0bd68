"""Precisions: what the weights are read and computed in."""

import openvino as ov

from parley.engine.runner import Placement

PRECISIONS = {
    "float32": {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"},
    "bfloat16": {"INFERENCE_PRECISION_HINT": "bf16", "KV_CACHE_PRECISION": "u8"},
    "int8": {"KV_CACHE_PRECISION": "u8"},
}
"""Plugin properties: float32 computes as transformers does; int8 reads weights that were compressed at export."""


def precision(placement: Placement, stored: str) -> str:
    """The precision asked for, or bfloat16 where the weights are stored so and this CPU multiplies it in hardware.

    Other weights are computed in float32, so that no answer changes for speed unasked.

    Args:
        placement: what is asked for.
        stored: the name of the precision that the weights have on disk.
    """
    if placement.dtype is not None:
        return placement.dtype
    if stored == "bfloat16" and "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return "bfloat16"
    return "float32"
