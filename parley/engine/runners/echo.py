"""A runner without a model: it says the user's last words back, one token a step. For tests, demos and UI work.

It reads the prompt as UTF-8 bytes (its tokenizer is `bytes`), so it needs no files at all. A last message that begins
with `slow ` is said at 20 tokens a second, so that a person or a test can watch it, stop it or break it.
"""

import codecs
import time
from dataclasses import dataclass, field

from parley.engine.runner import FinishReason, Job, ModelInfo, Placement, Step

CONTEXT_LENGTH = 8192

SLOW = b"slow "
SLOW_SECONDS = 0.05

CERTAIN = 0.0
"""The logarithm of a probability of one: an echo has no choice."""


class Utf8Text:
    """Detokenizer for tokens that are bytes."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")

    def push(self, tokens: list[int]) -> str:
        """Text that is final after these tokens; may be empty."""
        return self._decoder.decode(bytes(tokens))

    def flush(self) -> str:
        """Nothing: half a character is dropped."""
        return ""

    def token_bytes(self, token: int) -> bytes:
        """The byte that the token is."""
        return bytes([token])


@dataclass
class _Saying:
    rest: list[list[int]] = field(default_factory=list)
    last: FinishReason = "stop"
    slow: bool = False
    logprobs: bool = False


class EchoRunner:
    """Says each prompt back, word by word."""

    def __init__(self, reason: str, placement: Placement) -> None:
        self._active: dict[int, _Saying] = {}
        self.info = ModelInfo("echo", reason, "cpu", "none", CONTEXT_LENGTH, ["max_tokens", "stop", "logprobs"])
        self._max_batch = placement.max_batch

    def add(self, job: Job) -> None:
        """Takes a job; its words are the answer's tokens."""
        text = bytes(job.prompt)
        words = [list(word) for word in _words(text)]
        said = words[: job.sampling.max_tokens]
        last: FinishReason = "stop" if len(said) == len(words) else "length"
        self._active[job.id] = _Saying(said, last, text.startswith(SLOW), bool(job.sampling.logprobs))

    def cancel(self, job_id: int) -> None:
        """Forgets a job."""
        self._active.pop(job_id, None)

    def step(self) -> list[Step]:
        """One more word of each answer."""
        batch = list(self._active.items())[: self._max_batch]
        if any(saying.slow for _, saying in batch):
            time.sleep(SLOW_SECONDS)
        return [self._say(job_id, saying) for job_id, saying in batch]

    def detokenizer(self) -> Utf8Text:
        """A fresh incremental detokenizer."""
        return Utf8Text()

    def _say(self, job_id: int, saying: _Saying) -> Step:
        tokens = saying.rest.pop(0) if saying.rest else []
        finish: FinishReason | None = None if saying.rest else saying.last
        if finish:
            del self._active[job_id]
        return Step(job_id, tokens, finish, logprobs=[CERTAIN] * len(tokens) if saying.logprobs else [])


def _words(text: bytes) -> list[bytes]:
    """Words with the space before each; joined they are the text."""
    first, *rest = text.split(b" ")
    return [first, *(b" " + word for word in rest)]


def load(folder: None, placement: Placement, reason: str) -> EchoRunner:
    """The echo runner; it has no model folder."""
    return EchoRunner(reason, placement)
