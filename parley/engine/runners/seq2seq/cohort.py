"""Answers of the same width that are decoded together, in the slots of one pair of caches."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from parley.engine.runner import Step
from parley.engine.runners.seq2seq import rules
from parley.engine.runners.seq2seq.beams import BeamSearch, Candidate
from parley.engine.runners.seq2seq.chain import Chain
from parley.engine.runners.seq2seq.cross_cache import CrossCache
from parley.engine.runners.seq2seq.key_values import AttentionShape
from parley.engine.runners.seq2seq.rules import Rules
from parley.engine.runners.seq2seq.tree_cache import DistanceBias, TreeCache


@dataclass
class Answer:
    """One answer under way."""

    id: int
    rules: Rules
    search: BeamSearch | Chain
    error: str | None = field(default=None, init=False)


class Cohort:
    """The answers in order; answer `i` has slot `i` of both caches and rows `i * width` to `(i + 1) * width - 1`.

    Args:
        slots: how many answers fit.
        width: hypotheses of each answer.
        shape: of the model's attention.
        relative: the model's relative position bias, if it has one.
    """

    def __init__(self, slots: int, width: int, shape: AttentionShape, relative: DistanceBias | None) -> None:
        self._width = width
        self._tree = TreeCache(shape, slots, width, relative)
        self._cross = CrossCache(shape, width)
        self.answers: list[Answer] = []

    @property
    def rows(self) -> int:
        """How many hypotheses all answers have."""
        return len(self.answers) * self._width

    @property
    def memory(self) -> int:
        """Bytes that the caches take."""
        return self._tree.memory + self._cross.memory

    def growth(self, tokens: int) -> int:
        """Bytes that an answer to a prompt of so many tokens would add when it joins."""
        return self._tree.growth() + self._cross.growth(tokens)

    def fit(self) -> None:
        """Gives memory back that no answer needs."""
        self._tree.fit()
        self._cross.fit()

    def add(self, answer: Answer, cross_keys_values: Tensor) -> None:
        """Joins an answer; see `CrossCache.add`.

        Raises:
            RuntimeError: when the memory is not there; it has not joined then.
        """
        self._tree.reserve()  # so that all that may fail comes before the first change
        self._cross.add(cross_keys_values)
        self._tree.add()
        self.answers.append(answer)

    def remove(self, answer: Answer) -> None:
        """Drops an answer. Its memory stays until `fit`: new caches for every burst took a tenth of the time."""
        slot = self.answers.index(answer)
        self.answers[slot] = self.answers[-1]
        self.answers.pop()
        self._tree.remove(slot, broken=answer.error is not None)
        self._cross.remove(slot, broken=answer.error is not None)

    def begin(self) -> tuple[list[int], list[int]]:
        """Begins a step: the last token of every row, and its position."""
        self._tree.extend()
        hypotheses = [tokens for answer in self.answers for tokens in answer.search.hypotheses]
        return [tokens[-1] for tokens in hypotheses], [len(tokens) - 1 for tokens in hypotheses]

    def attend_self(self, layer: int, queries: Tensor, keys_values: Tensor) -> Tensor:
        """See `TreeCache.attend`."""
        return self._tree.attend(layer, queries, keys_values)

    def attend_cross(self, layer: int, queries: Tensor) -> Tensor:
        """See `CrossCache.attend`."""
        return self._cross.attend(layer, queries)

    def advance(self, logits: Tensor) -> list[Step]:
        """Continues every answer by one token of `logits` (rows, vocabulary), and drops those that have ended."""
        scores = logits.float() if self._width == 1 else logits.float().log_softmax(dim=-1)
        rules.apply(scores, [(a.rules, tokens) for a in self.answers for tokens in a.search.hypotheses])
        # A NaN or an infinity anywhere shows in the maximum; so does an answer of which every token is forbidden.
        sound = scores.amax(dim=-1).view(-1, self._width).amax(dim=1).isfinite().tolist()
        for answer, fine in zip(self.answers, sound, strict=True):
            answer.error = None if fine else "the model's scores are not finite numbers"
        if self._width == 1:
            self._continue_chains(scores)
        else:
            self._continue_beams(scores)
        steps = [step for answer in self.answers if (step := _step(answer))]
        for answer in [a for a in self.answers if a.error or a.search.finish]:
            self.remove(answer)
        return steps

    def _continue_chains(self, scores: Tensor) -> None:
        likeliest = scores.argmax(dim=-1).tolist()
        for answer, row, token in zip(self.answers, scores, likeliest, strict=True):
            if isinstance(answer.search, Chain) and not answer.error:
                draw = answer.search.draw
                answer.search.advance(draw(row) if draw else token)

    def _continue_beams(self, scores: Tensor) -> None:
        searches = [answer.search for answer in self.answers if isinstance(answer.search, BeamSearch)]
        so_far = torch.tensor([search.scores for search in searches], device=scores.device)
        totals = (scores.view(len(searches), self._width, -1) + so_far[:, :, None]).flatten(1)
        best = totals.topk(min(searches[0].candidates, totals.size(1)))
        beams, tokens = best.indices // scores.size(1), best.indices % scores.size(1)
        rows = zip(best.values.tolist(), beams.tolist(), tokens.tolist(), strict=True)
        parents = [
            search.advance([Candidate(*candidate) for candidate in zip(*row, strict=True)])
            for search, row in zip(searches, rows, strict=True)
        ]
        self._tree.follow(parents)


def _step(answer: Answer) -> Step | None:
    """What the step did for an answer; None where nothing can be told yet."""
    if answer.error:
        return Step(answer.id, error=answer.error)
    news, finish = answer.search.news(), answer.search.finish
    return Step(answer.id, news, finish) if news or finish else None
