"""Keys and values of many answers for all layers, one slot an answer."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention


@dataclass(frozen=True)
class AttentionShape:
    """What an attention cache must know of its model."""

    layers: int
    heads: int
    head_size: int
    scale: float
    """What scores are multiplied by before the softmax."""
    dtype: torch.dtype
    device: torch.device


class KeyValues:
    """Slots of growing capacity; position `p` of a slot holds the key and the value of one token in every layer.

    Attributes:
        data: (layers, slots, capacity, 2, heads, head_size). Positions never written are zero: a masked NaN would
            still spoil a softmax.
    """

    def __init__(self, shape: AttentionShape) -> None:
        self._shape = shape
        self.data = torch.zeros(
            (shape.layers, 0, 0, 2, shape.heads, shape.head_size), dtype=shape.dtype, device=shape.device
        )

    @property
    def slots(self) -> int:
        """How many answers fit."""
        return self.data.size(1)

    @property
    def capacity(self) -> int:
        """How many tokens fit in a slot."""
        return self.data.size(2)

    def reserve(self, slots: int, capacity: int) -> None:
        """Makes room for this much at least."""
        more_slots, more_capacity = max(0, slots - self.slots), max(0, capacity - self.capacity)
        if more_slots or more_capacity:
            self.data = pad(self.data, (0, 0) * 3 + (0, more_capacity, 0, more_slots))

    def move(self, source: int, target: int) -> None:
        """Copies a slot over another."""
        self.data[:, target] = self.data[:, source]

    def attend(self, layer: int, queries: Tensor, tokens: int, bias: Tensor | None) -> Tensor:
        """Attention of every slot's queries over the first `tokens` positions of that slot.

        Args:
            layer: the layer's index.
            queries: (slots, queries, heads * head_size), for the first slots.
            tokens: how many positions to read.
            bias: what is added to the scores, broadcastable to (slots, heads, queries, tokens); None adds nothing.

        Returns: the shape of `queries`.
        """
        slots, width, _ = queries.shape
        keys, values = self.data[layer, :slots, :tokens].permute(2, 0, 3, 1, 4)
        heads = queries.view(slots, width, self._shape.heads, self._shape.head_size).transpose(1, 2)
        attended = scaled_dot_product_attention(heads, keys, values, attn_mask=bias, scale=self._shape.scale)
        return attended.transpose(1, 2).reshape(slots, width, -1)
