"""OpenVINORunner: many answers decoded together by GenAI's pipeline."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

from parley.engine.hardware import memory_limit
from parley.engine.model import ModelError, ModelFolder, export_folder
from parley.engine.runner import FinishReason, Job, ModelInfo, Placement, Step
from parley.engine.runners.openvino.cache import BLOCK_TOKENS, block_bytes, cache_memory, dimensions, kv_blocks
from parley.engine.runners.openvino.generation import GenerationDefaults
from parley.engine.runners.openvino.precision import PRECISIONS, precision
from parley.tokenizer import StreamText

BATCHED_TOKENS = 1024
"""Most tokens that one step reads: long prompts are read in pieces of this size, beside answers that go on."""

_HONOURED = [
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "stop",
    "logprobs",
]


@dataclass
class _Request:
    """One job in the pipeline, and how far its answer has come.

    The pipeline may give up a request to which nothing is wrong. The same prompt and config then make the same answer
    again (at float32; elsewhere a near tie may fall the other way), and what was told of it before is not told twice.
    """

    job: Job
    config: Any
    handle: Any = None
    made: int = 0
    """Tokens that came from the handle."""
    told: int = 0
    """Tokens that were handed on, of this handle and those before it."""
    given_up: int = 0
    """How often the pipeline has given it up."""

    def untold(self, tokens: list[Any]) -> list[Any]:
        """What comes with the tokens that were not told before, of what came with the last `len(tokens)` made."""
        return tokens[len(tokens) - max(0, self.made - self.told) :]


class OpenVINORunner:
    """Many answers decoded together, with prefixes of earlier prompts kept in the cache.

    A step that finds no block for anybody, since prompts that are still read hold them all, ends every request in the
    pipeline. Those that could be answered by themselves are put in again, each when the one before it decodes; one that
    was given up twice is answered alone, which always ends.

    Args:
        pipeline: the loaded pipeline.
        defaults: the model's own generation config.
        tokenizer: tokenizers' tokenizer, for text.
        info: what the runner says of itself.
    """

    def __init__(self, pipeline: Any, defaults: GenerationDefaults, tokenizer: Any, info: ModelInfo) -> None:
        self._pipeline = pipeline
        self._defaults = defaults
        self._tokenizer = tokenizer
        self._requests: dict[int, _Request] = {}
        self._given_up: dict[int, _Request] = {}
        """By the ids of their jobs, in the order in which they go in again; while there are any, new ones follow."""
        self._cancelled = False
        """Whether a request that ended since the last step may hold blocks still."""
        self.cache_usage = 0.0
        self.info = info

    def add(self, job: Job) -> None:
        """Takes a job into the pipeline's queue."""
        request = _Request(job, self._defaults.config(job.sampling))
        if self._given_up or self._wants_to_be_alone():
            self._given_up[job.id] = request
        else:
            self._enter(request)

    def cancel(self, job_id: int) -> None:
        """Forgets a job; its blocks are free after the next step, which comes now if nothing else calls for one."""
        self._given_up.pop(job_id, None)
        if request := self._requests.pop(job_id, None):
            request.handle.cancel()
            self._cancelled = True
            if not self._requests:
                self._pipeline.step()
                self._cancelled = False

    def step(self) -> list[Step]:
        """Decodes once for all active jobs."""
        if self._given_up and self._has_room_for(first := next(iter(self._given_up.values()))):
            self._enter(self._given_up.pop(first.job.id))
        shared = len(self._requests) > 1 or self._cancelled
        self._pipeline.step()
        self._cancelled = False
        self.cache_usage = self._pipeline.get_metrics().cache_usage / 100
        steps: list[Step] = []
        for request in [request for request in self._requests.values() if _has_news(request.handle)]:
            ignored = request.handle.get_status() == genai.GenerationStatus.IGNORED
            step = self._collect(request)
            if ignored and shared:
                self._give_up(request)
            elif ignored:
                step = Step(step.id, error="the KV cache is too small for this request")
            if step.finish or step.error:
                del self._requests[step.id]
            if step.tokens or step.finish or step.error:
                steps.append(step)
        return steps

    def detokenizer(self) -> StreamText:
        """A fresh incremental detokenizer."""
        return StreamText(self._tokenizer)

    def _wants_to_be_alone(self) -> bool:
        return any(request.given_up > 1 for request in self._requests.values())

    def _has_room_for(self, request: _Request) -> bool:
        if request.given_up > 1 or self._wants_to_be_alone():
            return not self._requests
        return all(other.made for other in self._requests.values())

    def _enter(self, request: _Request) -> None:
        prompt = ov.Tensor(np.array([request.job.prompt], dtype=np.int64))
        request.made = 0
        request.handle = self._pipeline.add_request(request.job.id, prompt, request.config)
        self._requests[request.job.id] = request

    def _give_up(self, request: _Request) -> None:
        del self._requests[request.job.id]
        request.given_up += 1
        self._given_up = dict(sorted([*self._given_up.items(), (request.job.id, request)]))

    def _collect(self, request: _Request) -> Step:
        """What the pipeline has for one job since the last step."""
        tokens: list[int] = []
        logprobs: list[float] = []
        finish: FinishReason | None = None
        while request.handle.can_read():
            for output in request.handle.read().values():
                tokens += output.generated_ids
                logprobs += output.generated_log_probs
                finish = _FINISH.get(output.finish_reason, finish)
        if finish == "stop" and tokens and tokens[-1] in self._defaults.stop_token_ids:
            tokens.pop()
        logprobs = logprobs[: len(tokens)]
        request.made += len(tokens)
        tokens, logprobs = request.untold(tokens), request.untold(logprobs)
        request.told = max(request.told, request.made)
        return Step(request.job.id, tokens, finish, cached=None, logprobs=logprobs)


_FINISH: dict[Any, FinishReason] = {
    genai.GenerationFinishReason.STOP: "stop",
    genai.GenerationFinishReason.LENGTH: "length",
}


def _has_news(handle: Any) -> bool:
    return bool(handle.can_read()) or handle.get_status() != genai.GenerationStatus.RUNNING


def load(folder: ModelFolder, placement: Placement, reason: str) -> OpenVINORunner:
    """Loads an exported model.

    Raises:
        ModelError: when there is no export of the asked precision, or the model or device does not fit.
    """
    from tokenizers import Tokenizer

    dtype = precision(placement, folder.stored_dtype)
    if dtype not in PRECISIONS:
        raise ModelError(f"the openvino engine has no {dtype}: set PARLEY_DTYPE to one of {', '.join(PRECISIONS)}")
    export = folder.exported(dtype)
    if export is None:
        wanted = export_folder(folder.path, dtype).name
        raise ModelError(f"{folder.name} has no {wanted}/ export: make one with `parley convert`")
    if not (folder.path / "tokenizer.json").is_file():
        raise ModelError(f"{folder.name} has no tokenizer.json, which openvino needs; set PARLEY_ENGINE=transformers")
    defaults = GenerationDefaults(folder)
    config = dimensions(folder)
    context = int(config["max_position_embeddings"])
    memory = cache_memory(memory_limit(), (export / "openvino_model.bin").stat().st_size)
    blocks = kv_blocks(block_bytes(config, dtype), context, placement, memory)
    context = min(context, blocks * BLOCK_TOKENS)
    pipeline = _pipeline(export, placement, dtype, blocks)
    # Grammars are made from the vocabulary of the export's own tokenizer.
    structured = ["response_format"] if (export / "openvino_tokenizer.xml").is_file() else []
    honoured = [*_HONOURED, *structured]
    info = ModelInfo("openvino", reason, "cpu", dtype, context, honoured, longest_answer=defaults.longest_answer)
    return OpenVINORunner(pipeline, defaults, Tokenizer.from_file(str(folder.path / "tokenizer.json")), info)


def _pipeline(export: Path, placement: Placement, dtype: str, blocks: int) -> Any:
    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = blocks
    scheduler.max_num_batched_tokens = BATCHED_TOKENS
    scheduler.max_num_seqs = placement.max_batch
    scheduler.enable_prefix_caching = True
    scheduler.dynamic_split_fuse = True
    properties: dict[str, Any] = dict(PRECISIONS[dtype])
    if placement.threads:
        # Threads fewer than the cores would be bound to the first ones, and another process's to the same.
        properties |= {"INFERENCE_NUM_THREADS": placement.threads, "ENABLE_CPU_PINNING": False}
    return genai.ContinuousBatchingPipeline(str(export), scheduler, "CPU", properties)
