"""Beam search for one answer, step by step as transformers' `generate` does it (`GenerationMixin._beam_search`).

Pure: takes the best continuations, decides, and says whom each hypothesis continues.

Rules that always hold:
1. There are always `width` hypotheses, best first, all of the same length.
2. A hypothesis that ends is ranked by `score / tokens ** length_penalty`, the start token not counted; the best
   `width` of them are kept.
3. The search ends when no continuation is left, or no open hypothesis can beat the worst of a full set of ended ones,
   by the rule that `early_stopping` names.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from parley.engine.runner import FinishReason
from parley.engine.runners.seq2seq.ending import Ending

_DEAD = -1e9
"""The score of a hypothesis that must not win against a live one."""


class Candidate(NamedTuple):
    """A possible continuation: the sum of log-probabilities with it, the hypothesis it continues, and the token."""

    score: float
    beam: int
    token: int


class BeamSearch:
    """The state of one search.

    Args:
        start: the decoder's start token.
        width: number of hypotheses.
        ending: what ends a hypothesis.
        length_penalty: exponent of the length; above 0 favours long answers.
        early_stopping: True, False or "never", as in transformers' generation config.

    Attributes:
        hypotheses: the tokens of each, start token included.
        scores: of each hypothesis, a sum of log-probabilities.
    """

    def __init__(
        self, start: int, width: int, ending: Ending, length_penalty: float, early_stopping: bool | str
    ) -> None:
        self.hypotheses = [[start]] * width
        self.scores = [0.0] + [_DEAD] * (width - 1)
        self._ending = ending
        self._length_penalty = length_penalty
        self._early_stopping = early_stopping
        self._ended: list[tuple[float, list[int]]] = []
        self._done = False

    @property
    def candidates(self) -> int:
        """How many continuations `advance` wants: enough for `width` open ones if every hypothesis could end."""
        return max(2, 1 + len(self._ending.eos)) * len(self.hypotheses)

    @property
    def finish(self) -> FinishReason | None:
        """How the answer ended; None while the search goes on."""
        return self._ending.reason(self._ended[0][1]) if self._done else None

    def news(self) -> list[int]:
        """The answer's tokens once the search is over; nothing before."""
        return self._ending.content(self._ended[0][1]) if self._done else []

    def advance(self, candidates: Sequence[Candidate]) -> list[int]:
        """Takes the best continuations, best first; returns whom each new hypothesis continues."""
        width = len(self.hypotheses)
        grown = [(c, [*self.hypotheses[c.beam], c.token]) for c in candidates]
        ends = [self._ending.reason(tokens) is not None for _, tokens in grown]
        self._collect((c.score, tokens) for (c, tokens), over in list(zip(grown, ends, strict=True))[:width] if over)
        ranked = sorted(
            ((c.score + over * _DEAD, c.beam, tokens) for (c, tokens), over in zip(grown, ends, strict=True)),
            key=lambda continuation: -continuation[0],
        )[:width]
        self.scores = [score for score, _, _ in ranked]
        self.hypotheses = [tokens for _, _, tokens in ranked]
        self._done = all(ends) or not self._can_improve()
        return [beam for _, beam, _ in ranked]

    def _collect(self, ended: Iterable[tuple[float, list[int]]]) -> None:
        ranked = [(score / math.pow(len(tokens) - 1, self._length_penalty), tokens) for score, tokens in ended]
        self._ended = sorted([*self._ended, *ranked], key=lambda entry: -entry[0])[: len(self.hypotheses)]

    def _can_improve(self) -> bool:
        if len(self._ended) < len(self.hypotheses):
            return True
        if self._early_stopping is True:
            return False
        optimistic = self._early_stopping == "never" and self._length_penalty > 0
        length = (self._ending.max_length if optimistic else len(self.hypotheses[0])) - 1
        return self.scores[0] / math.pow(length, self._length_penalty) > self._ended[-1][0]
