"""What a generation config allows and forbids as the next token, by transformers' logits processors of the same names.

`Rules` is pure; `apply` carries the rules of a whole batch out on its scores at once.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig

Row = tuple["Rules", list[int]]
"""The rules and the tokens so far, start token included, of one row of scores."""


class Penalty(NamedTuple):
    """A repetition penalty: negative scores of `tokens` are multiplied by `factor`, others divided by it."""

    tokens: list[int]
    factor: float


class Rules:
    """The rules of one answer.

    Args:
        config: complete, as `Generation` gives it.
        prompt: the encoder's tokens.
        bias: of the request, added to the scores of single tokens before anything else.
    """

    def __init__(
        self, config: GenerationConfig, prompt: Sequence[int], bias: Mapping[int, float] | None = None
    ) -> None:
        self.bias = dict(bias or {})
        self._config = config
        self._prompt = sorted(set(prompt))
        self._said = _ngrams(prompt, config.encoder_no_repeat_ngram_size)
        self._bad_words = [
            (word[:-1], word[-1]) for word in config.bad_words_ids or [] if word not in [[eos] for eos in _eos(config)]
        ]

    def penalties(self, tokens: Sequence[int]) -> list[Penalty]:
        """In the order in which they are applied."""
        config = self._config
        found = []
        if config.encoder_repetition_penalty != 1.0:
            found.append(Penalty(self._prompt, 1 / config.encoder_repetition_penalty))
        if config.repetition_penalty != 1.0:
            found.append(Penalty(sorted(set(tokens)), config.repetition_penalty))
        return found

    def banned(self, tokens: list[int]) -> list[int]:
        """Tokens that must not come next."""
        banned = _repeating(tokens, self._config.no_repeat_ngram_size)
        if self._said:
            banned += self._said.get(tuple(_tail(tokens, self._config.encoder_no_repeat_ngram_size)), [])
        banned += [last for prefix, last in self._bad_words if tokens[len(tokens) - len(prefix) :] == prefix]
        if len(tokens) < self._config.min_length:
            banned += _eos(self._config)
        return banned

    def forced(self, tokens: Sequence[int]) -> list[int]:
        """The only tokens that may come next; empty when the choice is free."""
        config = self._config
        if config.forced_eos_token_id is not None and len(tokens) == config.max_length - 1:
            return _ids(config.forced_eos_token_id)
        return [config.forced_bos_token_id] if config.forced_bos_token_id is not None and len(tokens) == 1 else []


def apply(scores: Tensor, rows: Sequence[Row]) -> None:
    """Carries the rules out, in place; `scores` is (rows, vocabulary), logits or log-probabilities."""
    for row, (rules, tokens) in zip(scores, rows, strict=True):
        if rules.bias:
            row[list(rules.bias)] += torch.tensor(list(rules.bias.values()), device=row.device)
        for penalty in rules.penalties(tokens):
            _penalise(row, penalty)
    _fill(scores, ((row, rules.banned(tokens)) for row, (rules, tokens) in enumerate(rows)), -torch.inf)
    if forced := [(row, only) for row, (rules, tokens) in enumerate(rows) if (only := rules.forced(tokens))]:
        scores[[row for row, _ in forced]] = -torch.inf
        _fill(scores, forced, 0.0)


def _penalise(row: Tensor, penalty: Penalty) -> None:
    tokens = torch.tensor(penalty.tokens, device=row.device)
    chosen = row[tokens]
    row[tokens] = torch.where(chosen < 0, chosen * penalty.factor, chosen / penalty.factor)


def _fill(scores: Tensor, rows: Iterable[tuple[int, list[int]]], value: float) -> None:
    places = [(row, token) for row, tokens in rows for token in tokens]
    if places:
        index = torch.tensor(places, device=scores.device).T
        scores[index[0], index[1]] = value


def _ngrams(tokens: Sequence[int], size: int) -> dict[tuple[int, ...], list[int]]:
    """What follows each (size - 1)-gram; empty for size 0."""
    found: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for *head, last in zip(*(tokens[start:] for start in range(size)), strict=False):
        found[tuple(head)].append(last)
    return dict(found)


def _repeating(tokens: list[int], size: int) -> list[int]:
    """The tokens that would complete an n-gram that is in `tokens` already."""
    if size == 0:
        return []
    tail = _tail(tokens, size)
    starts = range(len(tokens) - size + 1)
    return [tokens[start + size - 1] for start in starts if tokens[start : start + size - 1] == tail]


def _tail(tokens: list[int], size: int) -> list[int]:
    """The beginning of the n-gram that the next token completes."""
    return tokens[max(0, len(tokens) - size + 1) :]


def _eos(config: GenerationConfig) -> list[int]:
    return _ids(config.eos_token_id)


def _ids(value: int | list[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)
