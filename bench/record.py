"""Record: what the load generator saw of one request. All times are seconds from the start of the trial."""

from dataclasses import dataclass, field
from itertools import pairwise


@dataclass
class Record:
    """One request, complete or cut off by the end of the trial.

    `due` is when the user wanted to ask. `pieces` are the arrivals of the pieces of text. `completion_tokens` is what
    the server counted, where it did; a piece may hold several tokens.
    """

    turn: int
    due: float
    pieces: list[float] = field(default_factory=list)
    done: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str | None = None

    @property
    def tokens(self) -> int:
        """Tokens of the answer: the server's count, or one a piece."""
        return len(self.pieces) if self.completion_tokens is None else self.completion_tokens

    @property
    def gaps(self) -> list[float]:
        """Times between pieces, as the user felt them."""
        return [later - earlier for earlier, later in pairwise(self.pieces)]

    def wait(self, until: float) -> float:
        """Time to the first piece; for a request still without one, the time that it has waited."""
        return (self.pieces[0] if self.pieces else until) - self.due
