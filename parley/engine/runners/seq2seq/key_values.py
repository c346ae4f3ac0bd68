"""Keys and values of many answers for all layers, one slot an answer."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


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

    Args:
        shape: of the model's attention.
        slots: how many answers fit. A CPU gives memory to a slot only once it is written.

    Attributes:
        data: (layers, slots, capacity, 2, heads, head_size). Positions never written are zero: a masked NaN would
            still spoil a softmax.
    """

    def __init__(self, shape: AttentionShape, slots: int) -> None:
        self._shape = shape
        self.data = self._zeros(slots, 0)

    @property
    def capacity(self) -> int:
        """How many tokens fit in a slot."""
        return self.data.size(2)

    def reserve(self, capacity: int, occupied: int) -> None:
        """Makes room for `capacity` tokens in each slot; what the first `occupied` slots hold is kept."""
        if capacity > self.capacity:
            grown = self._zeros(self.data.size(1), capacity)
            grown[:, :occupied, : self.capacity] = self.data[:, :occupied]
            self.data = grown

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

    def _zeros(self, slots: int, capacity: int) -> Tensor:
        shape = self._shape
        size = (shape.layers, slots, capacity, 2, shape.heads, shape.head_size)
        return torch.zeros(size, dtype=shape.dtype, device=shape.device)
