"""What ends a sequence of decoder tokens, and what of it is the answer."""

from dataclasses import dataclass

from parley.engine.runner import FinishReason


@dataclass(frozen=True)
class Ending:
    """The end of an answer, as its generation config defines it."""

    eos: frozenset[int]
    """The end-of-sequence tokens."""
    max_length: int
    """Most tokens, start token included."""
    forced: bool
    """Whether the token at `max_length` is put there by force, so that it says nothing of how the answer ended."""

    def reason(self, tokens: list[int]) -> FinishReason | None:
        """How a sequence has ended; None if it may go on."""
        stopped = tokens[-1] in self.eos
        if len(tokens) >= self.max_length:
            return "stop" if stopped and not self.forced else "length"
        return "stop" if stopped else None

    def content(self, tokens: list[int]) -> list[int]:
        """The answer: without the start token and the end token."""
        return tokens[1:-1] if tokens[-1] in self.eos else tokens[1:]
