"""Keys and values of many answers for all layers, one slot an answer, and attention over them.

Attention is written out as two batched products. torch's fused one is made for many queries: with the one of a greedy
answer it takes twice as long. It also rounds by how many positions are read, which is what the longest neighbour needs;
these products do not while whole groups are read, up to 256 positions (MKL on x86, heads of 40): the sums of more are
split, and so are rounded in another order.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 16
"""Positions are read in multiples of this: the numbers of a 512-bit register. Masked ones then add an exact zero."""


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

    @property
    def token_bytes(self) -> int:
        """Memory of one token's keys and values in all layers."""
        return 2 * self.layers * self.heads * self.head_size * self.dtype.itemsize


def whole_groups(tokens: int) -> int:
    """The multiple of `GROUP` that holds so many positions."""
    return -(-tokens // GROUP) * GROUP


class KeyValues:
    """Slots of growing capacity; position `p` of a slot holds the key and the value of one token in every layer.

    Args:
        shape: of the model's attention.

    Attributes:
        data: (layers, 2, slots, heads, capacity, head_size), keys first. What a masked position holds is finite: a
            masked NaN would still spoil a softmax.
    """

    def __init__(self, shape: AttentionShape) -> None:
        self._shape = shape
        self.data = self._zeros(0, 0)

    @property
    def capacity(self) -> int:
        """How many tokens fit in a slot."""
        return self.data.size(4)

    @property
    def memory(self) -> int:
        """Bytes that it takes."""
        return self.data.nbytes

    def growth(self, slots: int, capacity: int) -> int:
        """Bytes that `reserve` would add."""
        slots, capacity = self._grown(slots, capacity)
        return slots * capacity * self._shape.token_bytes - self.memory

    def reserve(self, slots: int, capacity: int) -> None:
        """Makes room for `capacity` tokens in each of so many slots; what the slots hold is kept.

        Raises:
            RuntimeError: when the memory is not there; nothing has changed then.
        """
        _, _, had, _, room, _ = self.data.shape
        if (size := self._grown(slots, capacity)) != (had, room):
            grown = self._zeros(*size)
            grown[:, :, :had, :, :room] = self.data
            self.data = grown

    def fit(self, used: int, capacity: int) -> None:
        """Gives memory back: of tokens beyond `capacity`, and of slots beyond twice the first, used ones.

        With less than as many again, answers that end and begin in turn would have all copied each time.
        """
        _, _, had, _, room, _ = self.data.shape
        slots = min(had, 2 * used)
        if (slots, capacity) != (had, room):
            self.data = self.data[:, :, :slots, :, :capacity].clone(memory_format=torch.contiguous_format)

    def move(self, source: int, target: int) -> None:
        """Copies a slot over another."""
        self.data[:, :, target] = self.data[:, :, source]

    def wipe(self, slot: int) -> None:
        """Clears what a broken answer left."""
        self.data[:, :, slot] = 0

    def keep(self, slot: int, positions: Tensor) -> None:
        """Moves these positions of a slot to its beginning, in this order."""
        self.data[:, :, slot, :, : len(positions)] = self.data[:, :, slot][:, :, :, positions]

    def places(self, positions: Tensor) -> Tensor:
        """Where `write` puts the tokens of the first slots; `positions` is (slots, tokens of each)."""
        _, _, slots, heads, capacity, _ = self.data.shape
        device = positions.device
        part = torch.arange(2, device=device)[:, None] * slots * heads + torch.arange(heads, device=device)
        slot = torch.arange(len(positions), device=device)[:, None] * heads
        return ((slot[:, :, None, None] + part) * capacity + positions[:, :, None, None]).view(-1)

    def write(self, layer: int, places: Tensor, keys_values: Tensor) -> None:
        """Puts new tokens into a layer; `keys_values` is (tokens, 2 * heads * head_size), keys first."""
        size = self._shape.head_size
        self.data[layer].view(-1, size).index_copy_(0, places, keys_values.reshape(-1, size))

    def attend(self, layer: int, queries: Tensor, tokens: int, bias: Tensor) -> Tensor:
        """Attention of every slot's queries over the first `tokens` positions of that slot.

        Args:
            layer: the layer's index.
            queries: (slots, queries, heads * head_size), for the first slots.
            tokens: how many positions to read, whole groups.
            bias: float32, added to the scores: broadcastable to (slots, heads, queries, tokens).

        Returns: the shape of `queries`.
        """
        (slots, width, _), shape = queries.shape, self._shape
        keys, values = self.data[layer, :, :slots].flatten(1, 2)[:, :, :tokens]
        heads = queries.view(slots, width, shape.heads, shape.head_size).transpose(1, 2) * shape.scale
        scores = torch.bmm(heads.reshape(-1, width, shape.head_size), keys.transpose(1, 2))
        chances = (scores.view(slots, shape.heads, width, tokens) + bias).softmax(-1).to(values.dtype)
        attended = torch.bmm(chances.view(-1, width, tokens), values)
        return attended.view(slots, shape.heads, width, -1).transpose(1, 2).reshape(slots, width, -1)

    def _grown(self, slots: int, capacity: int) -> tuple[int, int]:
        """Slots and capacity with room for these: twice the slots, so that a crowd that comes one by one is copied a
        few times only."""
        _, _, had, _, room, _ = self.data.shape
        return max(slots, 2 * had) if slots > had else had, max(room, whole_groups(capacity))

    def _zeros(self, slots: int, capacity: int) -> Tensor:
        shape = self._shape
        size = (shape.layers, 2, slots, shape.heads, capacity, shape.head_size)
        return torch.zeros(size, dtype=shape.dtype, device=shape.device)
