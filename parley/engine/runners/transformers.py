"""Decoder-only models on torch, batched by transformers' continuous batching.

Its manager runs a thread of its own and collects results in queues. Neither is used here: `step` drives the manager's
batch processor itself, so that adding, cancelling and decoding happen on one thread and take effect at once.
"""

from collections.abc import Iterator
from math import ceil
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.generation.continuous_batching import RequestState
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList
from transformers.utils import is_flash_attn_2_available

from parley.engine.model import ModelError, ModelFolder
from parley.engine.runner import Job, ModelInfo, Placement, Step
from parley.engine.runners import attention, hardware
from parley.engine.runners.sampler import Answer, Sampler, begin
from parley.tokenizer import StreamText, Tokenizer, WholeText

_PAGE = 32
"""Tokens a cache block; only whole blocks are shared between prompts, so a small one shares more."""
_STEP_TOKENS = 1024
"""Most tokens a step; a longer prompt is prefilled in several, between the others' tokens."""
_PARAMETERS = [
    "max_tokens", "temperature", "top_p", "top_k", "seed",
    "repetition_penalty", "frequency_penalty", "presence_penalty", "stop",
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
    try:
        model = _load_model(folder, where, hardware.dtype(placement, where))
        config = _generation_config(folder, model)
        return TransformersRunner(model, config, Tokenizer.load(folder.path), placement.max_batch, reason)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, MemoryError) as error:
        cause = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise ModelError(f"model {folder.name!r}: transformers cannot load it: {cause}") from error


def _load_model(folder: ModelFolder, where: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    model, report = AutoModelForCausalLM.from_pretrained(
        folder.path,
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        attn_implementation="flash_attention_2" if where.type == "cuda" and is_flash_attn_2_available() else None,
        output_loading_info=True,
    )
    if bad := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
        raise ValueError(f"its weights do not fit its config ({bad[0]}); fetch the whole model")
    return model.to(where)


def _generation_config(folder: ModelFolder, model: PreTrainedModel) -> GenerationConfig:
    config = model.generation_config
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
        max_batch: most jobs decoded together.
        reason: why this engine was chosen.
    """

    def __init__(
        self, model: PreTrainedModel, config: GenerationConfig, tokenizer: Tokenizer, max_batch: int, reason: str
    ) -> None:
        self._model = model
        self._config = config
        self._tokenizer = tokenizer
        self._answers: dict[str, Answer] = {}
        self._refused: list[Step] = []
        self._eos = _eos_ids(config, tokenizer)
        self._processor = _batch_processor(model, Sampler(self._answers), max_batch)
        self._info = ModelInfo(
            engine="transformers",
            reason=reason,
            device=str(model.device),
            dtype=str(model.dtype).removeprefix("torch."),
            context_length=min(_positions(model), self._processor.cache.num_blocks * _PAGE),
            parameters=_PARAMETERS,
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
        answer = begin(job, self._limit(job), self._model, self._config)
        self._answers[str(job.id)] = answer
        self._processor.scheduler.add_waiting_request(
            RequestState(str(job.id), list(job.prompt), max_new_tokens=answer.limit, eos_token_id=self._eos)
        )

    def cancel(self, job_id: int) -> None:
        """Forgets a job and frees its cache blocks at once."""
        self._refused = [step for step in self._refused if step.id != job_id]
        if self._answers.pop(str(job_id), None):
            self._processor.scheduler.set_request_cancellation(str(job_id))
            self._processor.scheduler.clear_cancelled_requests()

    def step(self) -> list[Step]:
        """Decodes one token for every job in the batch, and prefills what fits beside them."""
        refused, self._refused = self._refused, []
        if not self._answers or not self._processor.prepare_next_batch():
            return refused
        requests = self._processor.inputs_and_outputs.requests_in_batch
        self._forward()
        steps = list(self._advance(requests))
        self._processor.update_batch()
        self._processor.output_router.output_queue.queue.clear()
        self._forget(steps)
        return refused + steps

    def detokenizer(self) -> StreamText | WholeText:
        """A fresh incremental detokenizer for one answer."""
        return self._tokenizer.detokenizer()

