"""What a model library implements: add, cancel, step.

Rules that always hold:
1. A job that was added ends exactly once: a `Step` with `finish` or `error` set, or a `cancel`.
2. After that its id is free again and nothing of it is left in the batch or the cache.
3. `step` advances every active job by at most a few tokens and returns; it never waits for new jobs.

Everything here is synchronous and lives in the engine process, on one thread.
"""

from typing import Literal, Protocol, runtime_checkable

from msgspec import Struct

FinishReason = Literal["stop", "length"]

EVERY_TOKEN = 2**30
"""A `top_k` that keeps all tokens: more than any vocabulary has."""

GREEDY_BELOW = 1e-5
"""Lower temperatures are greedy: logits divided by so little overflow single precision."""


class Sampling(Struct, frozen=True, array_like=True):
    """How to choose tokens. `None` means the model's own generation config."""

    max_tokens: int | None = None
    """Most tokens to generate; the API always says it to an engine of our own."""
    temperature: float | None = None
    """Below `GREEDY_BELOW` it is greedy."""
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    """The same seed, prompt and parameters give the same tokens, whatever else runs."""
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    stop: tuple[str, ...] = ()
    """Strings that end the answer and are not part of it; matched by the loop, not by the runner."""
    logprobs: bool | None = None
    """Whether each token's log-probability is told."""
    top_logprobs: int | None = None
    """How many of the likeliest tokens are told at each place."""
    logit_bias: dict[int, float] | None = None
    """What is added to the logits of these token ids."""
    response_format: str | None = None
    """A JSON schema, as text, that the answer must meet: `parley.contract.schema` tells what it may hold."""

    def draws(self, default: bool) -> bool:
        """Whether tokens are drawn by chance: `temperature` decides, else a limit on what may be drawn asks for it.

        Args:
            default: what the model's own generation config says.
        """
        if self.temperature is not None:
            return self.temperature >= GREEDY_BELOW
        top_k = EVERY_TOKEN if self.top_k is None else self.top_k
        limited = top_k < EVERY_TOKEN or (self.top_p is not None and self.top_p < 1)
        return default or limited


class Job(Struct, frozen=True, array_like=True):
    """One answer to generate. `prompt` holds the token ids that the model reads (the encoder's, if it has one)."""

    id: int
    prompt: list[int]
    sampling: Sampling


class Step(Struct, frozen=True):
    """What one step did for one job: the tokens it added, and how it ended, if it did.

    `tokens` never holds an end-of-sequence token. `error` is a sentence for the log, without user text; such a job
    failed alone and is gone. `cached` is the number of prompt tokens whose work was reused, told with each token, since
    a stop string may make any of them the last; None where the library does not tell.
    """

    id: int
    tokens: list[int] = []
    finish: FinishReason | None = None
    error: str | None = None
    cached: int | None = 0
    logprobs: list[float] = []
    """One a token, if the job asked for them: natural logarithms of the probabilities that the model gave."""
    likeliest: list[list[tuple[int, float]]] = []
    """For each token, if the job asked for them: the likeliest ones at its place, and their log-probabilities."""


class ModelInfo(Struct, frozen=True):
    """What a loaded runner says of itself."""

    engine: str
    """The runner's name: openvino, transformers, seq2seq, echo."""
    reason: str
    """Why this engine was chosen."""
    device: str
    dtype: str
    context_length: int
    """Most tokens of prompt and answer together (of the prompt alone for an encoder-decoder)."""
    parameters: list[str]
    """Names of the sampling parameters that the runner honours, as fields of `Sampling`."""
    vocabulary: int | None = None
    """Number of token ids; None where it is not told, and no parameter names tokens by their ids."""
    streams: bool = True
    """False where the answer comes in one piece (beam search)."""
    longest_answer: int | None = None
    """Most tokens of an answer that the model's generation config states; None where it states none.

    A decoder-only model's `max_length` counts the prompt as well, and so states none.
    """


class Placement(Struct, frozen=True):
    """Where and how a model is put on the machine. `None` lets the runner choose for the hardware."""

    device: str | None = None
    """cpu, cuda, cuda:1, mps."""
    dtype: str | None = None
    """float32, bfloat16, float16, int8; a runner refuses what it cannot do."""
    threads: int | None = None
    max_batch: int = 32
    """Most jobs decoded together; more wait in the runner."""
    cache_bytes: int | None = None
    """Memory for the KV cache, for runners that keep one for all jobs."""


class Runner(Protocol):
    """A model that decodes many jobs together."""

    @property
    def info(self) -> ModelInfo:
        """What is loaded, and what it honours."""

    def add(self, job: Job) -> None:
        """Takes a job into the batch, or into a queue of the runner's own."""

    def cancel(self, job_id: int) -> None:
        """Forgets a job at once; an id that has ended is ignored."""

    def step(self) -> list[Step]:
        """Decodes once for all active jobs; empty when there is none."""

    def detokenizer(self) -> "Detokenizer":
        """A fresh incremental detokenizer for one answer."""


@runtime_checkable
class CacheReporter(Protocol):
    """A runner that knows how full its KV cache is."""

    cache_usage: float
    """The part of the cache that running jobs hold, from 0 to 1."""


class Detokenizer(Protocol):
    """Tokens to text for one answer; never emits half a character."""

    def push(self, tokens: list[int]) -> str:
        """Text that is final after these tokens; may be empty."""

    def flush(self) -> str:
        """What was held back, once the answer has ended."""

    def token_bytes(self, token: int) -> bytes | None:
        """One token's own UTF-8 text; None where it is a part of a character only."""
