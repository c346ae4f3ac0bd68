"""The generation config: the model's own, with what a request changes."""

import json
import secrets
from typing import Any

import openvino_genai as genai

from parley.engine.grammar import grammar
from parley.engine.model import ModelError, ModelFolder
from parley.engine.runner import Sampling

SMALLEST_TOP_P = 1e-30
"""What is less is zero, or may be in single precision, which GenAI refuses. It leaves one token either way."""

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

    def config(self, sampling: Sampling) -> Any:
        """The pipeline's `GenerationConfig` for one answer.

        Raises:
            RuntimeError: GenAI's, for what it does not take.
        """
        config = genai.GenerationConfig(**self._as_keywords())
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
        config.do_sample = sampling.draws(config.do_sample)
        if config.do_sample and sampling.temperature:
            config.temperature = sampling.temperature
        elif config.do_sample and not config.temperature:
            config.temperature = 1.0
        config.validate()
        return config

    def _as_keywords(self) -> dict[str, Any]:
        known = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "min_new_tokens")
        given = {name: self._config[name] for name in known if self._config.get(name) is not None}
        return {**given, "do_sample": bool(self._config.get("do_sample")), "stop_token_ids": self.stop_token_ids}
