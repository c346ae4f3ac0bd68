"""Chooses the next token of every answer in a batch, each by its own rules and its own random numbers.

transformers' continuous batching applies temperature, top-k and top-p per request but draws all requests from one
random stream, and knows no penalty. It does let logits processors see which request each row belongs to. `Sampler` is
such a processor: it applies to each row what `model.generate` would apply, draws the token, and leaves that token as
the row's maximum for the batch's own argmax to find.
"""

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch import FloatTensor, LongTensor, Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor

from parley.engine.runner import Job, Sampling


@dataclass
class Answer:
    """One answer under way."""

    job: Job
    processors: LogitsProcessorList
    rng: Random | None
    """Where its random numbers come from; None is greedy."""
    error: str | None = None
    logprob: float = 0.0
    """Of its newest token, if it asks for log-probabilities: as the model gave it, before any rule."""
    likeliest: list[tuple[int, float]] = field(default_factory=list)
    """The likeliest tokens in that token's place, as many as it asks for."""

    @property
    def asked(self) -> Sampling:
        """How it wants its tokens chosen."""
        return self.job.sampling


class LogitBias(LogitsProcessor):
    """Adds a request's bias to the logits of single tokens, before any other rule."""

    def __init__(self, bias: Mapping[int, float], device: torch.device) -> None:
        self._tokens = torch.tensor(list(bias), dtype=torch.long, device=device)
        self._values = torch.tensor([list(bias.values())], device=device)

    def __call__(self, input_ids: LongTensor, scores: FloatTensor) -> FloatTensor:
        """`scores` is (1, vocabulary)."""
        scores.index_add_(1, self._tokens, self._values.to(scores.dtype))
        return scores


class OpenAIPenalty(LogitsProcessor):
    """Frequency and presence penalty over the completion, by the formula in OpenAI's API reference.

    `score[t] -= count[t] * frequency + (count[t] > 0) * presence`
    """

    def __init__(self, prompt_length: int, frequency: float, presence: float) -> None:
        self._prompt_length = prompt_length
        self._frequency = frequency
        self._presence = presence

    def __call__(self, input_ids: LongTensor, scores: FloatTensor) -> FloatTensor:
        """`input_ids` is (1, length), `scores` (1, vocabulary)."""
        counts = Counter(input_ids[0, self._prompt_length :].tolist())
        penalties = [count * self._frequency + self._presence for count in counts.values()]
        tokens = torch.tensor(list(counts), dtype=torch.long, device=scores.device)
        scores.index_add_(1, tokens, -torch.tensor([penalties], device=scores.device, dtype=scores.dtype))
        return scores


def begin(job: Job, limit: int, model: Any, base: GenerationConfig) -> Answer:
    """A new answer, with the processors that `model.generate` would use for it.

    Args:
        job: what to answer.
        limit: most tokens to generate.
        model: the transformers model; how it builds processors is private to `generate` otherwise.
        base: the model's generation config, which holds where the job asks nothing.
    """
    config = _config(job.sampling, base)
    config.max_length = len(job.prompt) + limit
    model._prepare_special_tokens(config, True, device=model.device)
    processors = model._get_logits_processor(config, input_ids_seq_length=len(job.prompt), device=model.device)
    frequency, presence = job.sampling.frequency_penalty or 0.0, job.sampling.presence_penalty or 0.0
    if frequency or presence:
        processors.insert(0, OpenAIPenalty(len(job.prompt), frequency, presence))
    if job.sampling.logit_bias:
        processors.insert(0, LogitBias(job.sampling.logit_bias, model.device))
    return Answer(job, processors, _random(job.sampling.seed) if config.do_sample else None)


def _random(seed: int | None) -> Random:
    """Python takes a negative seed for the positive one, and answers to one request have seeds in a row."""
    return Random(None if seed is None else seed % 2**64)


def _config(sampling: Sampling, base: GenerationConfig) -> GenerationConfig:
    config = copy.deepcopy(base)
    config.do_sample = sampling.draws(bool(config.do_sample))
    if sampling.temperature is not None:
        config.temperature = sampling.temperature if config.do_sample else None
    elif config.do_sample and not config.temperature:
        config.temperature = 1.0
    for name in ("top_p", "top_k", "repetition_penalty"):
        if (value := getattr(sampling, name)) is not None:
            setattr(config, name, value)
    return config


class Sampler(ContinuousBatchingLogitsProcessor):
    """The batch's only logits processor.

    Args:
        answers: every answer under way, by request id; shared with the runner, which adds and removes.
    """

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        self.supported_kwargs: dict[str, type] = {}
        self.ignored_kwargs = ()
        self._answers = answers
        self._rows: list[tuple[Answer, Any]] = []

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        """Nothing travels by tensor: the rows are remembered instead."""
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> Tensor:
        """Remembers whose row is whose in the step that follows."""
        self._rows = [(self._answers[request.state.request_id], request.state) for request in requests_with_new_token]
        return torch.zeros(len(self._rows), dtype=torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        """`scores` is (rows, vocabulary), float32; rows after the remembered ones belong to nobody."""
        asking = [(row, answer) for row, (answer, _) in enumerate(self._rows) if answer.asked.logprobs]
        given = scores[[row for row, _ in asking]].log_softmax(dim=-1)
        for row, (answer, state) in enumerate(self._rows):
            if answer.processors:
                self._process(answer, state, scores[row : row + 1])
        self._mark_broken(scores)
        self._draw(scores)
        for (row, answer), logprobs in zip(asking, given, strict=True):
            tell(answer, logprobs, int(scores[row].argmax()))
        return scores

    def _process(self, answer: Answer, state: Any, row: Any) -> None:
        ids: Any = torch.tensor([state.initial_tokens + state.generated_tokens], device=row.device)
        try:
            row.copy_(answer.processors(ids, row))
        except Exception as error:  # noqa: BLE001 - whatever a processor raises concerns this row alone, never the batch
            answer.error = f"the sampling rules failed ({type(error).__name__})"

    def _mark_broken(self, scores: Tensor) -> None:
        """Fails the answers whose scores hold a NaN, an infinity, or no possible token."""
        usable = scores.amax(dim=-1).isfinite().tolist()
        for (answer, _), fine in zip(self._rows, usable, strict=False):
            if not fine:
                answer.error = answer.error or "the model's scores are not finite numbers"

    def _draw(self, scores: Tensor) -> None:
        """Draws by inverting the cumulative distribution: one random number a token, whatever the batch holds."""
        drawn = [(row, a.rng.random()) for row, (a, _) in enumerate(self._rows) if a.rng and not a.error]
        if not drawn:
            return
        rows = torch.tensor([row for row, _ in drawn], device=scores.device)
        precision = torch.float32 if scores.device.type == "mps" else torch.float64
        cumulative = scores[rows].softmax(dim=-1, dtype=precision).cumsum(dim=-1)
        points = torch.tensor([[point] for _, point in drawn], dtype=precision, device=scores.device)
        tokens = torch.searchsorted(cumulative, points * cumulative[:, -1:], right=True).clamp(max=scores.size(1) - 1)
        scores[rows] = torch.full_like(scores[rows], -torch.inf).scatter(1, tokens, 0.0)


def tell(answer: Answer, logprobs: Tensor, token: int) -> None:
    """Notes what an answer wants to know of its newest token; `logprobs` is (vocabulary,)."""
    best = logprobs.topk(answer.asked.top_logprobs or 0)
    answer.logprob = float(logprobs[token])
    answer.likeliest = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
