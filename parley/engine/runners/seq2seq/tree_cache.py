"""Self-attention cache of answers that are decoded as several hypotheses each.

An answer's hypotheses form a tree: each decoded token is a node, and a hypothesis is the path to one of the leaves.

Rules that always hold:
1. A node's keys and values are written once and do not depend on later choices. When beams are reordered, only the
   table of who sees which node changes; nothing is copied.
2. The occupied slots are the first ones, in the order of the cohort's answers.
3. Nodes that no hypothesis sees any more are dropped when their slot is full, before it grows. When that happens
   depends on the answer alone, so that the order of its sums does, too.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from parley.engine.runners.seq2seq.key_values import AttentionShape, KeyValues, whole_groups

DistanceBias = Callable[[Tensor], Tensor]
"""From distances in tokens (slots, nodes) to what is added to the scores: (slots, heads, 1, nodes)."""

_FIRST_CAPACITY = 64


class TreeCache:
    """Keys and values of the nodes of many answers of the same width.

    Args:
        shape: of the model's self-attention.
        slots: most answers at once.
        width: hypotheses of an answer.
        relative: the model's relative position bias, if it has one.
    """

    def __init__(self, shape: AttentionShape, slots: int, width: int, relative: DistanceBias | None) -> None:
        self._shape, self._width, self._relative = shape, width, relative
        self._store = KeyValues(shape)
        self._sees = torch.zeros((slots, width, 0), dtype=torch.bool, device=shape.device)
        self._depths = torch.zeros((slots, 0), dtype=torch.long, device=shape.device)
        self._used: list[int] = []
        self._limits: list[int] = []
        self._lengths: list[int] = []
        self._first_limit = whole_groups(max(_FIRST_CAPACITY, 4 * width))
        self._reserve(self._first_limit)

    @property
    def memory(self) -> int:
        """Bytes that the keys and values take."""
        return self._store.memory

    def growth(self) -> int:
        """Bytes that `reserve` would add."""
        return self._store.growth(len(self._used) + 1, self._sees.size(2))

    def fit(self) -> None:
        """Gives memory back that no answer needs."""
        capacity = max(self._limits, default=self._first_limit)
        self._store.fit(len(self._used), capacity)
        if capacity < self._sees.size(2):
            self._sees, self._depths = self._sees[:, :, :capacity].clone(), self._depths[:, :capacity].clone()

    def reserve(self) -> None:
        """Makes room for one more slot.

        Raises:
            RuntimeError: when the memory is not there; nothing has changed then.
        """
        self._store.reserve(len(self._used) + 1, self._sees.size(2))

    def add(self) -> None:
        """Opens the next slot, with no nodes."""
        self.reserve()
        self._sees[len(self._used)] = False
        self._used.append(0)
        self._limits.append(self._first_limit)
        self._lengths.append(0)

    def remove(self, slot: int, broken: bool) -> None:
        """Frees a slot; the last one takes its place. What a broken answer left is wiped."""
        if broken:
            self._store.wipe(slot)
        last = len(self._used) - 1
        if slot != last:
            self._store.move(last, slot)
            self._sees[slot], self._depths[slot] = self._sees[last], self._depths[last]
        for facts in (self._used, self._limits, self._lengths):
            facts[slot] = facts[last]
            facts.pop()

    def extend(self) -> None:
        """Begins a step: a new node for every hypothesis of every answer."""
        for slot in range(len(self._used)):
            self._make_room(slot)
        device, slots = self._shape.device, len(self._used)
        nodes = torch.tensor(self._used, device=device)[:, None] + torch.arange(self._width, device=device)
        lengths = torch.tensor(self._lengths, device=device)[:, None]
        self._places = self._store.places(nodes)
        self._sees[:slots].scatter_(2, nodes[:, :, None], True)
        self._depths[:slots].scatter_(1, nodes, lengths.expand(-1, self._width))
        self._used = [used + self._width for used in self._used]
        self._lengths = [length + 1 for length in self._lengths]
        self._bias = self._step_bias(lengths, whole_groups(max(self._used)))

    def attend(self, layer: int, queries: Tensor, keys_values: Tensor) -> Tensor:
        """Writes the new nodes of a layer and attends from them.

        Args:
            layer: the layer's index.
            queries: (slots * width, heads * head_size).
            keys_values: (slots * width, 2 * heads * head_size), the keys first.

        Returns: the shape of `queries`.
        """
        self._store.write(layer, self._places, keys_values)
        grouped = queries.view(-1, self._width, queries.size(1))
        return self._store.attend(layer, grouped, self._bias.size(3), self._bias).view_as(queries)

    def follow(self, parents: list[list[int]]) -> None:
        """Makes every hypothesis the continuation of another: `parents[slot][i]` is the one that `i` continues."""
        slots, nodes = len(parents), max(self._used)
        chosen = torch.tensor(parents, device=self._shape.device)[:, :, None].expand(-1, -1, nodes)
        self._sees[:slots, :, :nodes] = self._sees[:slots, :, :nodes].gather(1, chosen)

    def _step_bias(self, lengths: Tensor, nodes: int) -> Tensor:
        """Minus infinity where a hypothesis does not see a node: (slots, 1 or heads, width, nodes)."""
        hidden = ~self._sees[: len(lengths), None, :, :nodes]
        bias = torch.zeros(hidden.shape, device=self._shape.device)
        if self._relative is not None:
            bias = bias + self._relative((lengths - self._depths[: len(lengths), :nodes]).clamp_min(0))
        return bias.masked_fill(hidden, -torch.inf)

    def _make_room(self, slot: int) -> None:
        if self._used[slot] + self._width <= self._limits[slot]:
            return
        seen = self._sees[slot].any(0).nonzero()[:, 0]
        self._keep(slot, seen)
        if self._used[slot] + self._width > self._limits[slot] // 2:
            self._limits[slot] *= 2
            self._reserve(max(self._limits))

    def _keep(self, slot: int, nodes: Tensor) -> None:
        """Drops all nodes of a slot but these."""
        kept = len(nodes)
        if kept < self._used[slot]:
            self._store.keep(slot, nodes)
            self._depths[slot, :kept] = self._depths[slot, nodes]
            self._sees[slot, :, :kept] = self._sees[slot, :, nodes]
            self._sees[slot, :, kept:] = False
            self._used[slot] = kept

    def _reserve(self, capacity: int) -> None:
        if capacity <= self._sees.size(2):
            return
        self._store.reserve(len(self._used), capacity)
        self._sees = pad(self._sees, (0, capacity - self._sees.size(2)))
        self._depths = pad(self._depths, (0, capacity - self._depths.size(1)))
