"""Encoder-decoder models on torch: Blenderbot, BlenderbotSmall, BART, T5 and Flan-T5.

A step loop of our own: the encoder runs once for each answer, then all hypotheses of all answers are decoded together,
each at its own position, by the model's own generation config. At float32 the tokens are those of `model.generate` for
each answer alone, whatever else is decoded beside it. At int8 the rules are as exact and the numbers are not.
"""

from collections import deque
from typing import Any, cast

import torch
from transformers import AutoModelForSeq2SeqLM

from parley.engine.model import ModelError, ModelFolder
from parley.engine.runner import Detokenizer, Job, ModelInfo, Placement, Step
from parley.engine.runners import hardware
from parley.engine.runners.loading import checked, prompt_fault
from parley.engine.runners.seq2seq import int8, linears
from parley.engine.runners.seq2seq.beams import BeamSearch
from parley.engine.runners.seq2seq.chain import Chain
from parley.engine.runners.seq2seq.cohort import Answer, Cohort
from parley.engine.runners.seq2seq.decoder import Block, Decoder
from parley.engine.runners.seq2seq.draw import Draw
from parley.engine.runners.seq2seq.families import FAMILIES
from parley.engine.runners.seq2seq.generation import Generation, complete
from parley.engine.runners.seq2seq.key_values import AttentionShape
from parley.engine.runners.seq2seq.rules import Rules
from parley.startup import one_line
from parley.tokenizer import Tokenizer

_PARAMETERS = ["max_tokens", "temperature", "top_p", "top_k", "seed", "repetition_penalty", "stop", "logit_bias"]
_UNBOUNDED = 4096
"""Most tokens of a prompt and of an answer where neither the model nor its tokenizer has a limit."""

_ENCODED_PER_STEP = 1024
"""Prompt tokens after which no further answer joins in the same step: those under way must not wait for long."""


def load(folder: ModelFolder, placement: Placement, reason: str) -> "Seq2SeqRunner":
    """Loads an encoder-decoder model from its safetensors.

    Raises:
        ModelError: when the architecture is not one of the served, the weights do not fit the config, the generation
            config asks for what is not served, or the machine lacks the device, the precision or the memory.
    """
    if folder.model_type not in FAMILIES:
        served = ", ".join(FAMILIES)
        raise ModelError(f"model {folder.name!r}: the seq2seq engine serves {served}, not {folder.model_type!r}")
    if placement.threads is not None:
        torch.set_num_threads(placement.threads)
    where = hardware.device(placement)
    precision = _precision(placement, where)
    try:
        model = _load_model(folder, where, torch.bfloat16 if precision == "bfloat16" else torch.float32)
        tokenizer = Tokenizer.load(folder.path)
        return Seq2SeqRunner(model, tokenizer, precision, placement, reason)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, MemoryError, ModelError) as error:
        raise ModelError(f"model {folder.name!r}: it cannot be served by seq2seq: {one_line(error)}") from error


def _precision(placement: Placement, where: torch.device) -> str:
    """The precision asked for, or the exact one (bfloat16 on CUDA, which has no other fast one that is safe for T5)."""
    precision = placement.dtype or ("bfloat16" if where.type == "cuda" else "float32")
    if precision not in ("float32", "bfloat16", "int8"):
        raise ModelError(f"dtype {precision!r} is not served by seq2seq; use float32, bfloat16 or int8")
    if precision == "int8" and (where.type != "cpu" or not int8.supported()):
        raise ModelError("dtype 'int8' needs a CPU with VNNI instructions; use float32 or bfloat16")
    return precision


def _load_model(folder: ModelFolder, where: torch.device, dtype: torch.dtype) -> Any:
    model, report = AutoModelForSeq2SeqLM.from_pretrained(
        folder.path,
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    return checked(model, report).to(where).eval().requires_grad_(False)


class Seq2SeqRunner:
    """A `Runner` for encoder-decoder models.

    Args:
        model: transformers' model, on its device; its decoder is taken apart.
        tokenizer: the model's.
        precision: float32, bfloat16 or int8; the model is in bfloat16 for the second, else in float32.
        placement: how many answers are decoded together, and in how much memory.
        reason: why this engine was chosen.

    Raises:
        ModelError: when the generation config asks for what is not served.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, precision: str, placement: Placement, reason: str) -> None:
        self._positions = _positions(model.config, tokenizer)
        self._vocabulary = model.config.vocab_size
        self._generation = complete(model.generation_config, self._positions, self._vocabulary)
        self._clean_up = model.config.model_type.startswith("blenderbot")
        self._tokenizer = tokenizer
        self._device, self._max_batch = model.device, placement.max_batch
        self._decoder, self._shape = _take_apart(model)
        self._encoder = model.get_encoder()
        for part in (self._encoder, self._decoder):
            linears.prepare(part, precision, self._device)
        self._budget = hardware.cache_bytes(self._device) if placement.cache_bytes is None else placement.cache_bytes
        self._cohorts = {
            width: Cohort(self._max_batch, width, self._shape, self._decoder.relative)
            for width in {1, self._generation.config.num_beams}
        }
        self._waiting: deque[Job] = deque()
        self._info = ModelInfo(
            engine="seq2seq",
            reason=reason,
            device=str(self._device),
            dtype=precision,
            context_length=self._positions,
            parameters=_PARAMETERS,
            vocabulary=self._vocabulary,
            streams=self._generation.config.num_beams == 1,
            longest_answer=self._generation.longest_answer,
        )

    @property
    def info(self) -> ModelInfo:
        """What serves, and how; `streams` is False where the model's own config asks for beams."""
        return self._info

    def add(self, job: Job) -> None:
        """Queues a job; it joins the batch in one of the next steps, or ends there with an error."""
        self._waiting.append(job)

    @torch.inference_mode()
    def cancel(self, job_id: int) -> None:
        """Forgets a job and frees its rows at once."""
        self._waiting = deque(job for job in self._waiting if job.id != job_id)
        for cohort in self._cohorts.values():
            for answer in [answer for answer in cohort.answers if answer.id == job_id]:
                cohort.remove(answer)
        self._trim()

    @torch.inference_mode()
    def step(self) -> list[Step]:
        """Lets jobs join, and decodes one token of every hypothesis; jobs with beams report when they end."""
        steps = self._join()
        cohorts = [cohort for cohort in self._cohorts.values() if cohort.answers]
        if cohorts:
            rows = [cohort.begin() for cohort in cohorts]
            tokens = torch.tensor([token for tokens, _ in rows for token in tokens], device=self._device)
            positions = torch.tensor([place for _, places in rows for place in places], device=self._device)
            logits = self._decoder(tokens, positions, cohorts).split([cohort.rows for cohort in cohorts])
            steps += [step for cohort, part in zip(cohorts, logits, strict=True) for step in cohort.advance(part)]
            self._trim()
        return steps

    def detokenizer(self) -> Detokenizer:
        """A fresh incremental detokenizer for one answer."""
        return self._tokenizer.detokenizer(clean_up=self._clean_up)

    def _join(self) -> list[Step]:
        """Encodes the prompts of waiting jobs while there is room; returns those that cannot be served."""
        failed: list[Step] = []
        encoded = 0
        while self._waiting and encoded < _ENCODED_PER_STEP and self._has_room(self._waiting[0]):
            job = self._waiting.popleft()
            if fault := self._fault(job) or self._begin(job):
                failed.append(Step(job.id, error=fault))
            else:
                encoded += len(job.prompt)
        return failed

    @property
    def _active(self) -> int:
        return sum(len(cohort.answers) for cohort in self._cohorts.values())

    @property
    def _memory(self) -> int:
        return sum(cohort.memory for cohort in self._cohorts.values())

    def _has_room(self, job: Job) -> bool:
        """Whether a job may join: the batch has a place, and the caches stay within their budget or are all its own."""
        if self._active >= self._max_batch:
            return False
        cohort, tokens = self._cohort(self._generation.adapted(job.sampling)), min(len(job.prompt), self._positions)
        self._trim(cohort.growth(tokens))
        return not self._active or self._memory + cohort.growth(tokens) <= self._budget

    def _trim(self, growth: int = 0) -> None:
        """Frees what the caches hold without need, if they and so many bytes more exceed their budget."""
        if self._memory + growth > self._budget:
            for cohort in self._cohorts.values():
                cohort.fit()

    def _cohort(self, generation: Generation) -> Cohort:
        return self._cohorts[generation.config.num_beams]

    def _begin(self, job: Job) -> str | None:
        """Encodes a prompt and joins its answer to the cohort of its width; returns why that failed, if it did."""
        generation = self._generation.adapted(job.sampling)
        rules = Rules(generation.config, job.prompt, job.sampling.logit_bias)
        answer = Answer(job.id, rules, _search(generation, job.sampling.seed, self._device))
        prompt = torch.tensor([job.prompt], device=self._device)
        try:
            encoded = self._encoder(input_ids=prompt, attention_mask=torch.ones_like(prompt)).last_hidden_state[0]
            self._cohort(generation).add(answer, self._decoder.cross_keys_values(encoded))
        except torch.AcceleratorError:  # a device that has failed fails all that follow: a new process helps
            raise
        except RuntimeError as error:  # torch's, out of memory included: this prompt's alone
            return f"the answer could not begin ({type(error).__name__})"
        return None

    def _fault(self, job: Job) -> str | None:
        """Why a job cannot be served at all."""
        if len(job.prompt) > self._positions:
            return f"the prompt has {len(job.prompt)} tokens and the encoder reads {self._positions}"
        return prompt_fault(job.prompt, self._vocabulary)


def _take_apart(model: Any) -> tuple[Decoder, AttentionShape]:
    family = FAMILIES[model.config.model_type]
    decoder = family.build(model)
    heads = getattr(model.config, family.heads)
    weight = cast(Block, decoder.blocks[0]).qkv.weight
    size = weight.size(0) // 3 // heads
    scale = size**-0.5 if family.scaled else 1.0
    return decoder, AttentionShape(len(decoder.blocks), heads, size, scale, weight.dtype, weight.device)


def _search(generation: Generation, seed: int | None, device: torch.device) -> BeamSearch | Chain:
    config = generation.config
    if config.num_beams > 1:
        return BeamSearch(
            generation.start, config.num_beams, generation.ending, config.length_penalty, config.early_stopping
        )
    return Chain(generation.start, generation.ending, Draw(config, seed, device) if config.do_sample else None)


def _positions(config: Any, tokenizer: Tokenizer) -> int:
    """Most tokens of a prompt, and of an answer: the learned positions, or what the tokenizer says (T5 has none)."""
    learned = getattr(config, "max_position_embeddings", None)
    return int(learned or min(tokenizer.model_max_length, _UNBOUNDED))
