"""One hypothesis, continued by the likeliest token or by one drawn at random."""

from parley.engine.runner import FinishReason
from parley.engine.runners.seq2seq.draw import Draw
from parley.engine.runners.seq2seq.ending import Ending


class Chain:
    """The state of a greedy or sampled answer.

    Args:
        start: the decoder's start token.
        ending: what ends it.
        draw: chooses a token at random; None takes the likeliest.

    Attributes:
        hypotheses: its tokens, start token included, as the only item.
    """

    def __init__(self, start: int, ending: Ending, draw: Draw | None) -> None:
        self.hypotheses = [[start]]
        self.draw = draw
        self._ending = ending

    @property
    def finish(self) -> FinishReason | None:
        """How the answer ended; None while it goes on."""
        return self._ending.reason(self.hypotheses[0])

    def news(self) -> list[int]:
        """The token that came last, unless it is an end token."""
        return self._ending.content(self.hypotheses[0])[len(self.hypotheses[0]) - 2 :]

    def advance(self, token: int) -> None:
        """Takes the next token."""
        self.hypotheses[0].append(token)
