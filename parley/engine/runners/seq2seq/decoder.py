"""One decoding step for many answers at different positions, on the weights of a transformers model.

transformers' own decoders take one position for the whole batch and one copy of the encoder's output for each beam.
This one takes a position for each row, computes all linear layers for all rows at once, and leaves attention to the
caches of the cohorts, which keep one copy for each answer.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn


class Caches(Protocol):
    """The attention of the rows of one cohort."""

    @property
    def rows(self) -> int:
        """How many rows it has in this step."""

    def attend_self(self, layer: int, queries: Tensor, keys_values: Tensor) -> Tensor:
        """Adds the rows' keys and values to a layer, and attends."""

    def attend_cross(self, layer: int, queries: Tensor) -> Tensor:
        """Attends over what the encoder made of the prompts."""


class Block(nn.Module):
    """One layer: self-attention, cross-attention and feed-forward, each in a residual with its norm.

    Args:
        post_norm: whether a norm follows its residual (BART) or is applied to the branch's input (Blenderbot, T5).
        norms: of the three branches.
        qkv, out: self-attention's projections; `qkv` gives queries, keys and values side by side.
        cross_q, cross_kv, cross_out: cross-attention's; `cross_kv` is applied to the encoder's output.
        feed: the feed-forward branch.
    """

    def __init__(
        self,
        *,
        post_norm: bool,
        norms: Sequence[nn.Module],
        qkv: nn.Linear,
        out: nn.Linear,
        cross_q: nn.Linear,
        cross_kv: nn.Linear,
        cross_out: nn.Linear,
        feed: nn.Module,
    ) -> None:
        super().__init__()
        self.post_norm = post_norm
        self.norms = nn.ModuleList(norms)
        self.qkv, self.out = qkv, out
        self.cross_q, self.cross_kv, self.cross_out = cross_q, cross_kv, cross_out
        self.feed = feed

    def forward(self, hidden: Tensor, layer: int, cohorts: Sequence[Caches]) -> Tensor:
        """(rows, model size) to the same; the rows are those of the cohorts, one after the other."""
        sizes = [cohort.rows for cohort in cohorts]

        def attend_self(inputs: Tensor) -> Tensor:
            projected = self.qkv(inputs)
            size = projected.size(1) // 3
            parts = projected.split([size, 2 * size], dim=1)
            groups = zip(cohorts, *(part.split(sizes) for part in parts), strict=True)
            attended = torch.cat([cohort.attend_self(layer, q, kv) for cohort, q, kv in groups])
            return cast(Tensor, self.out(attended))

        def attend_cross(inputs: Tensor) -> Tensor:
            groups = zip(cohorts, self.cross_q(inputs).split(sizes), strict=True)
            attended = torch.cat([cohort.attend_cross(layer, q) for cohort, q in groups])
            return cast(Tensor, self.cross_out(attended))

        branches: tuple[Callable[[Tensor], Tensor], ...] = (attend_self, attend_cross, self.feed)
        for norm, branch in zip(self.norms, branches, strict=True):
            hidden = norm(hidden + branch(hidden)) if self.post_norm else hidden + branch(norm(hidden))
        return hidden


class Decoder(nn.Module):
    """The decoder and the output layer of an encoder-decoder model.

    Args:
        embed: from tokens and positions, both (rows,), to (rows, model size).
        blocks: the layers.
        norm: applied after the last layer.
        head: from (rows, model size) to logits.
        relative: the relative position bias of self-attention, or None; see `tree_cache.DistanceBias`.
    """

    def __init__(
        self,
        embed: nn.Module,
        blocks: Sequence[Block],
        norm: nn.Module,
        head: nn.Module,
        relative: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.embed, self.blocks, self.norm, self.head = embed, nn.ModuleList(blocks), norm, head
        self.relative = relative

    def cross_keys_values(self, encoded: Tensor) -> Tensor:
        """What cross-attention needs of a prompt: (tokens, model size) to (layers, tokens, 2 * attention size)."""
        return torch.stack([cast(Block, block).cross_kv(encoded) for block in self.blocks])

    def forward(self, tokens: Tensor, positions: Tensor, cohorts: Sequence[Caches]) -> Tensor:
        """Logits, (rows, vocabulary), after one more token in each row; `tokens` and `positions` are (rows,)."""
        hidden = self.embed(tokens, positions)
        for layer, block in enumerate(self.blocks):
            hidden = block(hidden, layer, cohorts)
        return cast(Tensor, self.head(self.norm(hidden)))
