"""Decoder-only models on torch, batched by transformers' continuous batching: CPU, CUDA and MPS."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils.import_utils import is_flash_attn_2_available

from parley.engine.model import ModelError, ModelFolder
from parley.engine.runner import FinishReason, Job, ModelInfo, Placement, Step
from parley.engine.runners import hardware
from parley.engine.runners.loading import checked, prompt_fault
from parley.engine.runners.transformers.batch import Batch, Progress
from parley.engine.runners.transformers.sampler import Answer, Sampler, begin
from parley.startup import one_line
from parley.tokenizer import StreamText, Tokenizer, WholeText

_PARAMETERS = [
    "max_tokens", "temperature", "top_p", "top_k", "seed",
    "repetition_penalty", "frequency_penalty", "presence_penalty", "stop", "logprobs", "top_logprobs", "logit_bias",
]  # fmt: skip
_UNSERVED = {
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "guidance_scale": (None, 1, 1.0),
    "penalty_alpha": (None, 0, 0.0),
    "dola_layers": (None,),
    "stop_strings": (None,),
    "max_time": (None,),
    "watermarking_config": (None,),
}
"""What a generation config may ask that one token a step cannot give, with the values that ask nothing."""


def load(folder: ModelFolder, placement: Placement, reason: str) -> "TransformersRunner":
    """Loads a decoder-only model from its safetensors.

    Raises:
        ModelError: when the model is no decoder-only one, its weights do not fit its config, its generation config
            asks for what is not served, or the machine lacks the device or the memory.
    """
    if folder.encoder_decoder:
        raise ModelError(f"model {folder.name!r}: an encoder-decoder model; use the seq2seq engine")
    if placement.threads is not None:
        torch.set_num_threads(placement.threads)
    where = hardware.device(placement)
    dtype = hardware.dtype(placement, where, folder.stored_dtype)
    try:
        model = _load_model(folder, where, dtype)
        config = _generation_config(folder, model)
        return TransformersRunner(model, config, Tokenizer.load(folder.path), placement, reason)
    except (OSError, ValueError, LookupError, AttributeError, ImportError, RuntimeError, MemoryError) as error:
        raise ModelError(f"model {folder.name!r}: transformers cannot load it: {one_line(error)}") from error


def _load_model(folder: ModelFolder, where: torch.device, dtype: torch.dtype) -> Any:
    loader: Any = AutoModelForCausalLM  # its types do not know `output_loading_info`
    model, report = loader.from_pretrained(
        folder.path,
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        attn_implementation="flash_attention_2" if where.type == "cuda" and is_flash_attn_2_available() else None,
        output_loading_info=True,
    )
    return checked(model, report).to(where)


def _generation_config(folder: ModelFolder, model: Any) -> GenerationConfig:
    config: GenerationConfig = model.generation_config
    for name, served in _UNSERVED.items():
        if getattr(config, name, None) not in served:
            raise ModelError(
                f"model {folder.name!r}: generation_config.json asks for {name}={getattr(config, name)!r}, which the "
                "transformers engine does not serve; remove it there"
            )
    return config


class TransformersRunner:
    """A `Runner` on transformers' continuous batching.

    Args:
        model: on its device, in its precision.
        config: the model's generation config; what it asks holds for jobs that ask nothing else.
        tokenizer: the model's.
        placement: how many jobs are decoded together, and in how much memory.
        reason: why this engine was chosen.
    """

    def __init__(
        self, model: Any, config: GenerationConfig, tokenizer: Tokenizer, placement: Placement, reason: str
    ) -> None:
        self._model = model
        self._config = config
        self._tokenizer = tokenizer
        self._eos = _eos_ids(config, tokenizer)
        self._answers: dict[str, Answer] = {}
        self._refused: list[Step] = []
        self._batch = Batch(model, Sampler(self._answers), placement, _positions(model))
        self._info = ModelInfo(
            engine="transformers",
            reason=reason,
            device=str(model.device),
            dtype=str(model.dtype).removeprefix("torch."),
            context_length=min(_positions(model), self._batch.capacity),
            parameters=_PARAMETERS,
            vocabulary=model.config.get_text_config().vocab_size,
            longest_answer=config.max_new_tokens,
        )

    @property
    def info(self) -> ModelInfo:
        """What serves, and how."""
        return self._info

    def add(self, job: Job) -> None:
        """Queues a job; one that cannot be served ends with an error in the next step.

        Raises:
            ValueError: when a job of this id is under way.
        """
        if str(job.id) in self._answers:
            raise ValueError(f"job {job.id} is under way already")
        if fault := self._fault(job):
            self._refused.append(Step(job.id, error=fault))
            return
        limit = self._limit(job)
        self._answers[str(job.id)] = begin(job, limit, self._model, self._config)
        self._batch.add(str(job.id), job.prompt, limit, self._eos)

    def cancel(self, job_id: int) -> None:
        """Forgets a job and frees its cache blocks at once."""
        self._refused = [step for step in self._refused if step.id != job_id]
        if self._answers.pop(str(job_id), None):
            self._batch.cancel(str(job_id))

    def step(self) -> list[Step]:
        """Decodes one token for every job in the batch, and prefills what fits beside them."""
        steps, self._refused = self._refused, []
        if self._answers:
            steps += [self._step(progress) for progress in self._batch.step()]
        return steps

    def detokenizer(self) -> StreamText | WholeText:
        """A fresh incremental detokenizer for one answer."""
        return self._tokenizer.detokenizer()

    def _step(self, progress: Progress) -> Step:
        """One request's progress in the runner's words; an answer that has ended is forgotten."""
        answer = self._answers[progress.id]
        if error := progress.error or answer.error:
            self.cancel(answer.job.id)
            return Step(answer.job.id, error=error)
        stopped = progress.token in self._eos
        tokens = [] if stopped or progress.token is None else [progress.token]
        told = _told(answer) if tokens and answer.asked.logprobs else {}
        finish: FinishReason | None = None
        if progress.finished:
            del self._answers[progress.id]
            finish = "stop" if stopped else "length"
        return Step(answer.job.id, tokens, finish, cached=progress.cached, **told)

    def _fault(self, job: Job) -> str | None:
        """Why a job cannot be served at all."""
        context = self._info.context_length
        if len(job.prompt) >= context:
            return f"the prompt's {len(job.prompt)} tokens leave no room in the context of {context}"
        return prompt_fault(job.prompt, self._info.vocabulary or 0)

    def _limit(self, job: Job) -> int:
        """Most tokens of the answer: never more than the context has room for."""
        room = self._info.context_length - len(job.prompt)
        return min(job.sampling.max_tokens or room, room)


def _told(answer: Answer) -> dict[str, Any]:
    """What a step tells of the newest token of an answer that asks for log-probabilities."""
    return {"logprobs": [answer.logprob], "likeliest": [answer.likeliest] if answer.asked.top_logprobs else []}


def _eos_ids(config: GenerationConfig, tokenizer: Tokenizer) -> list[int]:
    """The generation config's end tokens, one or several; else the tokenizer's."""
    eos = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
    return [eos] if isinstance(eos, int) else list(eos or [])


def _positions(model: Any) -> int:
    """The context that the model was made for, in tokens."""
    return int(model.config.get_text_config().max_position_embeddings)
