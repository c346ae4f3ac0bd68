"""Batches of encoded conversations, grouped by length so that little is padding."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from training.corpus.book import Book
from training.corpus.writer import conversations
from training.tokenizer import PAD_ID, encode_talk, load_tokenizer

_TALKS_AT_ONCE = 3_000
_TORN_SHARE, _DROPOUT = 0.3, 0.1

Encoded = tuple[list[int], list[bool]]
Batch = tuple[Tensor, Tensor]


class Batches(IterableDataset[Batch]):
    """Batches without end, made in a process of their own, so that the model never waits for its next text."""

    def __init__(self, book: Book, tokenizer: Path, tokens: int, context: int, seed: int) -> None:
        self._made_of = book, tokenizer, tokens, context, seed

    def __iter__(self) -> Iterator[Batch]:
        return _batches(*self._made_of)

    def ahead(self) -> Iterator[Batch]:
        """The batches, up to a hundred of them made ahead."""
        return iter(DataLoader(self, batch_size=None, num_workers=1, prefetch_factor=100))


def _batches(book: Book, tokenizer: Path, tokens: int, context: int, seed: int) -> Iterator[Batch]:
    """Give batches without end: ids (batch, length) and what to learn (batch, length) bool.

    A batch holds about so many tokens; conversations are cut to the context. What three in ten users type is
    encoded with BPE dropout, which tears words apart as typos do.
    """
    rng = Random(seed)
    talks = conversations(book, seed)
    plain, torn = load_tokenizer(tokenizer), load_tokenizer(tokenizer, _DROPOUT)
    while True:
        typed_by = (torn if rng.random() < _TORN_SHARE else plain for _ in range(_TALKS_AT_ONCE))
        encoded = [encode_talk(talk, plain, typed) for typed, talk in zip(typed_by, talks, strict=False)]
        grouped = list(_grouped(encoded, tokens, context))
        rng.shuffle(grouped)
        yield from map(_padded, grouped)


def _grouped(encoded: list[Encoded], tokens: int, context: int) -> Iterator[list[Encoded]]:
    """Cut conversations to the context and put those of like length together."""
    group: list[Encoded] = []
    for ids, learn in sorted(encoded, key=lambda talk: len(talk[0])):
        if group and (len(group) + 1) * min(len(ids), context) > tokens:
            yield group
            group = []
        group.append((ids[:context], learn[:context]))


def _padded(group: list[Encoded]) -> Batch:
    length = max(len(ids) for ids, _ in group)
    ids = torch.full((len(group), length), PAD_ID)
    learn = torch.zeros((len(group), length), dtype=torch.bool)
    for row, (talk, marks) in enumerate(group):
        ids[row, : len(talk)] = torch.tensor(talk)
        learn[row, : len(talk)] = torch.tensor(marks)
    return ids, learn
