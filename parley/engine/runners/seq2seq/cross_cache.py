"""Cross-attention cache: what the encoder made of each prompt, kept once for all hypotheses of its answer.

Prompts of about the same length share a shelf. A decoding step of a few rows is bound by the bytes that it reads, and
beside one long prompt every short one would be read at the long one's length.
"""

import torch
from torch import Tensor

from parley.engine.runners.seq2seq.key_values import GROUP, AttentionShape, KeyValues, whole_groups


class CrossCache:
    """Keys and values of the prompts of many answers of the same width; slots as in `TreeCache`."""

    def __init__(self, shape: AttentionShape, width: int) -> None:
        self._shape, self._width = shape, width
        self._shelves: dict[int, Shelf] = {}
        self._shelf_of: list[Shelf] = []
        self._occupied: list[Shelf] = []
        self._stale = False

    @property
    def memory(self) -> int:
        """Bytes that it takes."""
        return sum(shelf.memory for shelf in self._shelves.values())

    def growth(self, tokens: int) -> int:
        """Bytes that `add` would add for a prompt of so many tokens."""
        room = _room(tokens)
        return self._shelves[room].growth() if room in self._shelves else room * self._shape.token_bytes

    def fit(self) -> None:
        """Gives memory back that no prompt needs."""
        self._shelves = {room: shelf for room, shelf in self._shelves.items() if shelf.slots}
        for shelf in self._shelves.values():
            shelf.fit()
        if self._stale:
            self._occupied = []

    def add(self, keys_values: Tensor) -> None:
        """Opens the next slot for a prompt of `keys_values`: (layers, tokens, 2 * heads * head_size), keys first.

        Raises:
            RuntimeError: when the memory is not there; nothing has changed then.
        """
        room = _room(keys_values.size(1))
        if room not in self._shelves:
            self._shelves[room] = Shelf(self._shape, room)
        shelf = self._shelves[room]
        shelf.add(len(self._shelf_of), keys_values)
        self._shelf_of.append(shelf)
        self._stale = True

    def remove(self, slot: int, broken: bool) -> None:
        """Frees a slot; the last one takes its place. What a broken answer left is wiped."""
        self._shelf_of[slot].remove(slot, broken)
        last = len(self._shelf_of) - 1
        if slot != last:
            self._shelf_of[last].rename(last, slot)
            self._shelf_of[slot] = self._shelf_of[last]
        self._shelf_of.pop()
        self._stale = True

    def attend(self, layer: int, queries: Tensor) -> Tensor:
        """Attention over the prompts; `queries` and the result are (slots * width, heads * head_size)."""
        if self._stale:
            self._arrange()
        grouped = queries.view(-1, self._width, queries.size(1))
        parts = [shelf.attend(layer, grouped[slots]) for shelf, slots in zip(self._occupied, self._slots, strict=True)]
        return torch.cat(parts)[self._back].view_as(queries)

    def _arrange(self) -> None:
        """Notes which slots each shelf serves, and where each slot is in the shelves' order."""
        self._occupied = [shelf for shelf in self._shelves.values() if shelf.slots]
        for shelf in self._occupied:
            shelf.hide_padding()
        self._slots = [torch.tensor(shelf.slots, device=self._shape.device) for shelf in self._occupied]
        self._back = torch.cat(self._slots).argsort()
        self._stale = False


class Shelf:
    """Prompts of one range of lengths.

    Args:
        shape: of the model's attention.
        room: most tokens of a prompt, whole groups.

    Attributes:
        slots: whose prompt each place of the shelf holds.
    """

    def __init__(self, shape: AttentionShape, room: int) -> None:
        self._shape, self._room = shape, room
        self._store = KeyValues(shape)
        self._lengths: list[int] = []
        self.slots: list[int] = []

    @property
    def memory(self) -> int:
        """Bytes that it takes."""
        return self._store.memory

    def growth(self) -> int:
        """Bytes that one more prompt would add."""
        return self._store.growth(len(self.slots) + 1, self._room)

    def fit(self) -> None:
        """Gives memory of free places back."""
        self._store.fit(len(self.slots), self._room)

    def add(self, slot: int, keys_values: Tensor) -> None:
        """Takes a prompt in; see `CrossCache.add`."""
        place, tokens = len(self.slots), keys_values.size(1)
        self._store.reserve(place + 1, self._room)
        heads = keys_values.view(len(keys_values), tokens, 2, self._shape.heads, -1).permute(0, 2, 3, 1, 4)
        self._store.data[:, :, place, :, :tokens] = heads
        self.slots.append(slot)
        self._lengths.append(tokens)

    def remove(self, slot: int, broken: bool) -> None:
        """Drops a slot's prompt; the last one takes its place."""
        place, last = self.slots.index(slot), len(self.slots) - 1
        if broken:
            self._store.wipe(place)
        if place != last:
            self._store.move(last, place)
        for facts in (self.slots, self._lengths):
            facts[place] = facts[last]
            facts.pop()

    def rename(self, old: int, new: int) -> None:
        """Follows an answer to another slot."""
        self.slots[self.slots.index(old)] = new

    def hide_padding(self) -> None:
        """Hides what follows each prompt: (prompts, 1, 1, tokens)."""
        lengths = torch.tensor(self._lengths, device=self._shape.device)[:, None]
        hidden = torch.arange(self._room, device=self._shape.device) >= lengths
        self._bias = torch.zeros(hidden.shape, device=self._shape.device).masked_fill(hidden, -torch.inf)[:, None, None]

    def attend(self, layer: int, queries: Tensor) -> Tensor:
        """Attention of (prompts, queries of each, heads * head_size) over the prompts; the result has that shape."""
        return self._store.attend(layer, queries, self._room, self._bias)


def _room(tokens: int) -> int:
    """The length of the shelf for a prompt: at most a quarter is padding, or less than a group."""
    step = max(GROUP, 1 << max(0, tokens.bit_length() - 3))
    return whole_groups(-(-tokens // step) * step)
