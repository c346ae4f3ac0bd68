"""The KV cache: how much a block of it takes, and how many blocks there are."""

import math
from typing import Any

from parley.engine.hardware import cache_blocks
from parley.engine.model import ModelError, ModelFolder
from parley.engine.runner import Placement
from parley.engine.runners.openvino.precision import PRECISIONS

BLOCK_TOKENS = 32
"""Tokens in one block of the CPU plugin's KV cache."""

CACHE_SHARE = 0.4
"""Most of the machine's memory that the KV cache may take."""

RESERVED_BYTES = 2**28
"""What is left to Python, the API's process and the libraries' work, beside weights and cache."""

U8_SCALE_BYTES = 8
"""Scale and zero point of a group in a u8 cache: one channel of a block of keys, or the value of one token and head."""

_OLD_NAMES = {
    "max_position_embeddings": "n_positions",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "hidden_size": "n_embd",
}
"""GPT-2's and its kin's."""


def dimensions(folder: ModelFolder) -> dict[str, Any]:
    """A model's config with its dimensions under the names that most models have.

    Raises:
        ModelError: for a config that names them in a third way.
    """
    config = {name: folder.config[old] for name, old in _OLD_NAMES.items() if old in folder.config} | folder.config
    if missing := [name for name in _OLD_NAMES if name not in config]:
        raise ModelError(f"config.json of {folder.name} has no {missing[0]}: set PARLEY_ENGINE=transformers")
    return config


def block_bytes(config: dict[str, Any], dtype: str) -> int:
    """The size of one block of KV cache, of a model with these `dimensions` in this precision."""
    layers = int(config["num_hidden_layers"])
    heads = int(config.get("num_key_value_heads") or config["num_attention_heads"])
    head_size = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    if PRECISIONS[dtype]["KV_CACHE_PRECISION"] == "u8":
        keys, values = head_size * (BLOCK_TOKENS + U8_SCALE_BYTES), BLOCK_TOKENS * (head_size + U8_SCALE_BYTES)
        return layers * heads * (keys + values)
    return layers * heads * 2 * head_size * BLOCK_TOKENS * 4


def cache_memory(memory: int, weights: int) -> int:
    """Bytes that the KV cache may take.

    Args:
        memory: bytes that this machine or container has.
        weights: bytes of the model's weights.
    """
    return max(0, min(int(CACHE_SHARE * memory), memory - weights - RESERVED_BYTES))


def kv_blocks(size: int, context: int, placement: Placement, memory: int) -> int:
    """Blocks of KV cache. Memory is taken as they fill, and all of them fill: a cache keeps what ended.

    Without a size asked for, a machine too small for the model's longest conversation bounds the conversations.

    Args:
        size: bytes of one block.
        context: most tokens of one conversation.
        placement: the batch, and the size asked for.
        memory: the most that it may take without a size asked for, in bytes.

    Raises:
        ModelError: when what was asked for does not hold one longest conversation, or no memory is left for a block.
    """
    longest = math.ceil(context / BLOCK_TOKENS)
    blocks = cache_blocks(size, longest, placement.max_batch, memory, placement.cache_bytes)
    if blocks < 1 and placement.cache_bytes is None:
        raise ModelError("the model leaves no memory for a KV cache: give the service more, or set PARLEY_KV_CACHE_GB")
    if placement.cache_bytes is None:
        return blocks
    if blocks < longest:
        raise ModelError(
            f"the KV cache has room for {blocks * BLOCK_TOKENS:,} tokens and the model's longest conversation has "
            f"{context:,}: set PARLEY_KV_CACHE_GB to {_up(longest * size / 2**30)} or more"
        )
    return blocks


def _up(number: float) -> str:
    """The number rounded up to two digits."""
    step = 10.0 ** (math.floor(math.log10(number)) - 1)
    return f"{math.ceil(number / step) * step:.2g}"
