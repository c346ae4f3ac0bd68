"""Attention over the paged cache, one request at a time.

Without flash attention, transformers packs a batch into one sequence and attends over all of it under a mask: every
request pays for the keys of all others, and a NaN in one reaches all. Here each request attends to its own keys only.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig

NAME = "parley_paged"
"""Under which transformers knows it."""


def fits(config: PretrainedConfig) -> bool:
    """Whether a model needs nothing but full causal attention: no window, no soft cap, no sinks."""
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    windowed = getattr(config, "sliding_window", None) is not None and getattr(config, "layer_types", None) is None
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    return layers == {"full_attention"} and not windowed and not capped


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface, for continuous batching only.

    Args:
        module: the attention layer.
        query: (1, heads, tokens of all requests, width); key and value alike, with their own number of heads.
        attention_mask: always None, since this implementation is registered without a mask.
        scaling: of the scores.
        kwargs: `cache`, `cu_seq_lens_q` and `cu_seq_lens_k` among them, as continuous batching passes them.

    Returns the outputs, (1, tokens, heads, width), and None in place of attention weights.
    """
    key, value = kwargs["cache"].update(key, value, module.layer_idx, kwargs)
    query_ends = kwargs["cu_seq_lens_q"].tolist()
    key_ends = kwargs["cu_seq_lens_k"].tolist()  # `update` has picked this layer's
    output = torch.empty_like(query)
    for i in range(len(query_ends) - 1):
        own, seen = slice(query_ends[i], query_ends[i + 1]), slice(key_ends[i], key_ends[i + 1])
        output[:, :, own] = _attend_one(query[:, :, own], key[:, :, seen], value[:, :, seen], scaling)
    return output.transpose(1, 2).contiguous(), None


def _attend_one(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """One request: its last tokens against all of its tokens; heads may share keys."""
    length, known = query.size(2), key.size(2)
    if length == 1:  # the query heads that share a key head become rows of one query, so nothing is repeated
        packed = query.view(1, key.size(1), -1, query.size(3))
        return scaled_dot_product_attention(packed, key, value, scale=scaling).view_as(query)
    grouped = query.size(1) != key.size(1)
    if length == known:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
    mask = torch.ones(length, known, dtype=torch.bool, device=query.device).tril(known - length)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=grouped)


AttentionInterface.register(NAME, attend)
