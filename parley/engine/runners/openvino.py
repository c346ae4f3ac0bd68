"""Decoder-only models on a CPU: OpenVINO GenAI's continuous batching.

Needs an export: the embedded model ships with one beside its weights, in `openvino/`; `parley convert` makes one for
another model. Neither torch nor transformers is imported.
"""

import json
import math
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

from parley.engine.grammar import grammar
from parley.engine.hardware import cache_blocks, memory_limit
from parley.engine.model import ModelError, ModelFolder, export_folder
from parley.engine.runner import GREEDY_BELOW, FinishReason, Job, ModelInfo, Placement, Step
from parley.tokenizer import StreamText

BLOCK_TOKENS = 32
"""Tokens in one block of the CPU plugin's KV cache."""

BATCHED_TOKENS = 1024
"""Most tokens that one step reads: long prompts are read in pieces of this size, beside answers that go on."""

CACHE_SHARE = 0.4
"""Most of the machine's memory that the KV cache may take."""

SMALLEST_TOP_P = 1e-30
"""What is less is zero, or may be in single precision, which GenAI refuses. It leaves one token either way."""

PRECISIONS = {
    "float32": {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"},
    "bfloat16": {"INFERENCE_PRECISION_HINT": "bf16", "KV_CACHE_PRECISION": "u8"},
    "int8": {"KV_CACHE_PRECISION": "u8"},
}
"""Plugin properties: float32 computes as transformers does; int8 reads weights that were compressed at export."""

U8_SCALE_BYTES = 8
"""Scale and zero point of a group in a u8 cache: one channel of a block of keys, or the value of one token and head."""

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


class OpenVINORunner:
    """Many answers decoded together, with prefixes of earlier prompts kept in the cache.

    Args:
        pipeline: the loaded pipeline.
        defaults: the model's own generation config.
        tokenizer: tokenizers' tokenizer, for text.
        info: what the runner says of itself.
    """

    def __init__(self, pipeline: Any, defaults: Any, tokenizer: Any, info: ModelInfo) -> None:
        self._pipeline = pipeline
        self._defaults = defaults
        self._tokenizer = tokenizer
        self._handles: dict[int, Any] = {}
        self.cache_usage = 0.0
        self.info = info

    def add(self, job: Job) -> None:
        """Takes a job into the pipeline's queue."""
        prompt = ov.Tensor(np.array([job.prompt], dtype=np.int64))
        self._handles[job.id] = self._pipeline.add_request(job.id, prompt, self._config(job))

    def cancel(self, job_id: int) -> None:
        """Forgets a job; its blocks are free after the next step, which comes now if nothing else calls for one."""
        if handle := self._handles.pop(job_id, None):
            handle.cancel()
            if not self._handles:
                self._pipeline.step()

    def step(self) -> list[Step]:
        """Decodes once for all active jobs."""
        self._pipeline.step()
        self.cache_usage = self._pipeline.get_metrics().cache_usage / 100
        steps = [self._collect(job_id, handle) for job_id, handle in self._handles.items() if _has_news(handle)]
        for step in steps:
            if step.finish or step.error:
                del self._handles[step.id]
        return steps

    def detokenizer(self) -> StreamText:
        """A fresh incremental detokenizer."""
        return StreamText(self._tokenizer)

    def _collect(self, job_id: int, handle: Any) -> Step:
        """What the pipeline has for one job since the last step."""
        tokens: list[int] = []
        logprobs: list[float] = []
        finish: FinishReason | None = None
        while handle.can_read():
            for output in handle.read().values():
                tokens += output.generated_ids
                logprobs += output.generated_log_probs
                finish = _FINISH.get(output.finish_reason, finish)
        if handle.get_status() == genai.GenerationStatus.IGNORED:
            return Step(job_id, error="the KV cache is too small for this request")
        if finish == "stop" and tokens and tokens[-1] in self._defaults.stop_token_ids:
            tokens.pop()
        return Step(job_id, tokens, finish, cached=None, logprobs=logprobs[: len(tokens)])

    def _config(self, job: Job) -> Any:
        """The model's own generation config with what the request changes."""
        config = genai.GenerationConfig(**self._defaults.as_keywords())
        sampling = job.sampling
        for name, value in {
            "max_new_tokens": sampling.max_tokens,
            "top_p": None if sampling.top_p is None else max(sampling.top_p, SMALLEST_TOP_P),
            "top_k": sampling.top_k,
            "rng_seed": secrets.randbits(63) if sampling.seed is None else sampling.seed % 2**63,  # its default is 0
            "repetition_penalty": sampling.repetition_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "presence_penalty": sampling.presence_penalty,
        }.items():
            if value is not None:
                setattr(config, name, value)
        config.min_new_tokens = min(config.min_new_tokens, config.max_new_tokens)
        config.logprobs = 1 if sampling.logprobs else 0
        if sampling.response_format is not None:
            rules = grammar(json.loads(sampling.response_format))
            config.structured_output_config = genai.StructuredOutputConfig(grammar=rules)
        if sampling.temperature is not None:
            config.do_sample = sampling.temperature >= GREEDY_BELOW
        if config.do_sample and sampling.temperature:
            config.temperature = sampling.temperature
        return config


_FINISH: dict[Any, FinishReason] = {
    genai.GenerationFinishReason.STOP: "stop",
    genai.GenerationFinishReason.LENGTH: "length",
}


def _has_news(handle: Any) -> bool:
    return bool(handle.can_read()) or handle.get_status() != genai.GenerationStatus.RUNNING


_NOT_HONOURED: dict[str, Any] = {
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "bad_words_ids": [],
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "sequence_bias": [],
    "typical_p": 1.0,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
}
"""What transformers obeys and GenAI's batching does not know, with the value that asks for nothing (or None)."""


class GenerationDefaults:
    """What a model's `generation_config.json` says, in transformers' format.

    Raises:
        ModelError: when it asks for something that this runner cannot do, such as beam search.
    """

    def __init__(self, folder: ModelFolder) -> None:
        path = folder.path / "generation_config.json"
        self._config: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        eos = self._config.get("eos_token_id", folder.config.get("eos_token_id"))
        self.stop_token_ids = set(eos) if isinstance(eos, list) else {eos} - {None}
        if self._config.get("num_beams", 1) != 1:
            raise ModelError(f"{folder.name} asks for beam search: set PARLEY_ENGINE=transformers")
        if asked := [name for name, neutral in _NOT_HONOURED.items() if self._config.get(name) not in (None, neutral)]:
            raise ModelError(
                f"the generation config of {folder.name} sets {asked[0]}, which openvino does not honour: set "
                "PARLEY_ENGINE=transformers"
            )

    @property
    def longest_answer(self) -> int | None:
        """Most tokens of an answer, if it says so."""
        tokens: int | None = self._config.get("max_new_tokens")
        return tokens

    def as_keywords(self) -> dict[str, Any]:
        """Keyword arguments for the pipeline's `GenerationConfig`."""
        known = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "min_new_tokens")
        given = {name: self._config[name] for name in known if self._config.get(name) is not None}
        return {**given, "do_sample": bool(self._config.get("do_sample")), "stop_token_ids": self.stop_token_ids}


_OLD_NAMES = {
    "max_position_embeddings": "n_positions",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "hidden_size": "n_embd",
}
"""GPT-2's and its kin's."""


def dimensions(folder: ModelFolder) -> dict[str, Any]:
    """A model's config with its dimensions under the names that most models have.

    Raises:
        ModelError: for a config that names them in a third way.
    """
    config = {name: folder.config[old] for name, old in _OLD_NAMES.items() if old in folder.config} | folder.config
    if missing := [name for name in _OLD_NAMES if name not in config]:
        raise ModelError(f"config.json of {folder.name} has no {missing[0]}: set PARLEY_ENGINE=transformers")
    return config


def block_bytes(config: dict[str, Any], dtype: str) -> int:
    """The size of one block of KV cache, of a model with these `dimensions` in this precision."""
    layers = int(config["num_hidden_layers"])
    heads = int(config.get("num_key_value_heads") or config["num_attention_heads"])
    head_size = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    if PRECISIONS[dtype]["KV_CACHE_PRECISION"] == "u8":
        keys, values = head_size * (BLOCK_TOKENS + U8_SCALE_BYTES), BLOCK_TOKENS * (head_size + U8_SCALE_BYTES)
        return layers * heads * (keys + values)
    return layers * heads * 2 * head_size * BLOCK_TOKENS * 4


def precision(placement: Placement, stored: str) -> str:
    """The precision asked for, or bfloat16 where the weights are stored so and this CPU multiplies it in hardware.

    Other weights are computed in float32, so that no answer changes for speed unasked.

    Args:
        placement: what is asked for.
        stored: the name of the precision that the weights have on disk.
    """
    if placement.dtype is not None:
        return placement.dtype
    if stored == "bfloat16" and "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return "bfloat16"
    return "float32"


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
    blocks = kv_blocks(block_bytes(config, dtype), context, placement, memory_limit())
    context = min(context, blocks * BLOCK_TOKENS)
    pipeline = _pipeline(export, placement, dtype, blocks)
    # Grammars are made from the vocabulary of the export's own tokenizer.
    structured = ["response_format"] if (export / "openvino_tokenizer.xml").is_file() else []
    honoured = [*_HONOURED, *structured]
    info = ModelInfo("openvino", reason, "cpu", dtype, context, honoured, longest_answer=defaults.longest_answer)
    return OpenVINORunner(pipeline, defaults, Tokenizer.from_file(str(folder.path / "tokenizer.json")), info)


def kv_blocks(size: int, context: int, placement: Placement, memory: int) -> int:
    """Blocks of KV cache. Memory is taken as they fill, and all of them fill: a cache keeps what ended.

    Without a size asked for, a machine too small for the model's longest conversation bounds the conversations.

    Args:
        size: bytes of one block.
        context: most tokens of one conversation.
        placement: the batch, and the size asked for.
        memory: bytes that this machine or container has.

    Raises:
        ModelError: when what was asked for does not hold one longest conversation.
    """
    longest = math.ceil(context / BLOCK_TOKENS)
    blocks = cache_blocks(size, longest, placement.max_batch, int(CACHE_SHARE * memory), placement.cache_bytes)
    if placement.cache_bytes is None:
        return max(1, blocks)
    if blocks < longest:
        raise ModelError(
            f"the KV cache has room for {blocks * BLOCK_TOKENS:,} tokens and the model's longest conversation has "
            f"{context:,}: set PARLEY_KV_CACHE_GB to {_up(longest * size / 2**30)} or more"
        )
    return blocks


def _up(number: float) -> str:
    """The number rounded up to two digits."""
    step = 10.0 ** (math.floor(math.log10(number)) - 1)
    return f"{math.ceil(number / step) * step:.2g}"


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
