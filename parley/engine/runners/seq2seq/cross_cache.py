"""Cross-attention cache: what the encoder made of each prompt, kept once for all hypotheses of its answer."""

import torch
from torch import Tensor

from parley.engine.runners.seq2seq.key_values import AttentionShape, KeyValues

_CAPACITY_STEP = 32


class CrossCache:
    """Keys and values of the prompts of many answers of the same width; slots as in `TreeCache`."""

    def __init__(self, shape: AttentionShape, slots: int, width: int) -> None:
        self._shape, self._width = shape, width
        self._store = KeyValues(shape, slots)
        self._lengths: list[int] = []

    def add(self, keys_values: Tensor) -> None:
        """Opens the next slot for a prompt of `keys_values`: (layers, tokens, 2 * heads * head_size), keys first."""
        slot, tokens = len(self._lengths), keys_values.size(1)
        self._store.reserve(-(-tokens // _CAPACITY_STEP) * _CAPACITY_STEP, slot)
        self._store.data[:, slot, :tokens].flatten(2).copy_(keys_values)
        self._store.data[:, slot, tokens:] = 0
        self._lengths.append(tokens)
        self._update_bias()

    def remove(self, slot: int, broken: bool) -> None:
        """Frees a slot; the last one takes its place. What a broken answer left is wiped."""
        if broken:
            self._store.data[:, slot] = 0
        last = len(self._lengths) - 1
        if slot != last:
            self._store.move(last, slot)
            self._lengths[slot] = self._lengths[last]
        self._lengths.pop()
        self._update_bias()

    def attend(self, layer: int, queries: Tensor) -> Tensor:
        """Attention over the prompts; `queries` and the result are (slots * width, heads * head_size)."""
        grouped = queries.view(-1, self._width, queries.size(1))
        return self._store.attend(layer, grouped, max(self._lengths), self._bias).view_as(queries)

    def _update_bias(self) -> None:
        """Hides the padding after shorter prompts: (slots, 1, 1, tokens), or None where all are as long."""
        if len(set(self._lengths)) <= 1:
            self._bias: Tensor | None = None
            return
        lengths = torch.tensor(self._lengths, device=self._shape.device)[:, None]
        padding = torch.arange(max(self._lengths), device=self._shape.device) >= lengths
        bias = torch.zeros(padding.shape, dtype=self._shape.dtype, device=self._shape.device)
        self._bias = bias.masked_fill(padding, -torch.inf)[:, None, None]
