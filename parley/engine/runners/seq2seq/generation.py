"""A model's own generation config, and what a request makes of it.

A request changes the search as follows; everything it does not name stays the model's.
- `temperature` 0 is greedy; a higher one, a `top_k` or a `top_p` below 1 is sampling. Both replace beam search.
- `max_tokens` lowers the model's own limit. Where the config states none, and `generate` would stop at 20 tokens,
  `max_tokens` may also raise it.
- `seed` and `repetition_penalty` change neither the kind of search nor its width.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any

from transformers import GenerationConfig

from parley.engine.model import ModelError
from parley.engine.runner import Sampling
from parley.engine.runners.seq2seq.ending import Ending

_SERVED = {
    "bad_words_ids", "decoder_start_token_id", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty", "eos_token_id", "forced_bos_token_id", "forced_eos_token_id", "length_penalty",
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "min_p", "no_repeat_ngram_size", "num_beams",
    "repetition_penalty", "temperature", "top_k", "top_p",
}  # fmt: skip
_WITHOUT_EFFECT = {
    "bos_token_id", "cache_config", "cache_implementation", "compile_config", "disable_compile", "max_cache_len",
    "output_attentions", "output_hidden_states", "output_logits", "output_scores", "pad_token_id",
    "return_dict_in_generate", "transformers_version", "use_cache",
}  # fmt: skip
"""Fields that do not change which tokens one answer has."""


@dataclass(frozen=True)
class Generation:
    """The generation config of a model, complete, or of one request to it."""

    config: GenerationConfig
    """Every field that `_SERVED` names has a value; `max_length` and `min_length` count the start token."""
    ceiling: int
    """The highest `max_length` that a request may have."""
    stated: bool
    """Whether the model's config says how long an answer may be."""

    @property
    def start(self) -> int:
        """The decoder's start token."""
        return int(self.config.decoder_start_token_id)

    @property
    def longest_answer(self) -> int | None:
        """Most tokens of an answer, without the start token; None where the model's config does not say it."""
        return self.config.max_length - 1 if self.stated else None

    @property
    def ending(self) -> Ending:
        """What ends an answer."""
        config = self.config
        return Ending(frozenset(config.eos_token_id), config.max_length, config.forced_eos_token_id is not None)

    def adapted(self, sampling: Sampling) -> "Generation":
        """The config of one request, as the module's docstring says."""
        config = copy.copy(self.config)
        config.do_sample = sampling.draws(config.do_sample)
        if config.do_sample or sampling.temperature is not None:
            config.num_beams = 1
        for name in ("temperature", "top_p", "top_k", "repetition_penalty"):
            if (value := getattr(sampling, name)) is not None:
                setattr(config, name, value)
        if config.do_sample and not config.temperature:
            config.temperature = 1.0
        if sampling.max_tokens is not None:
            config.max_length = min(sampling.max_tokens + 1, self.ceiling)
        return replace(self, config=config)


def complete(config: GenerationConfig, positions: int, vocabulary: int) -> Generation:
    """Fills in what `generate` assumes, and refuses what is not served.

    Args:
        config: as the model's folder has it.
        positions: most tokens that the decoder can read.
        vocabulary: number of tokens.

    Raises:
        ModelError: when the config asks for something that would be ignored; without the model's name.
    """
    defaults = GenerationConfig._get_default_generation_params()
    for name, value in GenerationConfig().to_dict().items():
        asked = getattr(config, name, None)
        if name not in _SERVED | _WITHOUT_EFFECT and asked not in (None, value, defaults.get(name), False, 0, []):
            raise ModelError(f"generation_config.json asks for {name}={asked!r}, which is not served; remove it there")
    filled = copy.deepcopy(config)
    filled.update(**defaults, defaults_only=True)
    stated = config.max_length is not None or config.max_new_tokens is not None
    filled.max_length = min(_max_length(filled, stated), positions + 1)
    if config.min_new_tokens is not None:
        filled.min_length = config.min_new_tokens + 1
    _normalise_tokens(filled)
    _refuse(filled, vocabulary)
    return Generation(filled, filled.max_length if stated else positions + 1, stated)


def _max_length(filled: GenerationConfig, stated: bool) -> int:
    """As `GenerationMixin._prepare_generated_length`: new tokens come first, and an assumed length is of new tokens."""
    if filled.max_new_tokens is not None:
        return int(filled.max_new_tokens) + 1
    return int(filled.max_length) + (not stated)


def _normalise_tokens(filled: GenerationConfig) -> None:
    eos: Any = filled.eos_token_id
    filled.eos_token_id = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    if filled.decoder_start_token_id is None:
        filled.decoder_start_token_id = filled.bos_token_id


def _refuse(filled: GenerationConfig, vocabulary: int) -> None:
    if filled.decoder_start_token_id is None:
        raise ModelError("generation_config.json has no decoder_start_token_id; add it there")
    if filled.do_sample and filled.num_beams > 1:
        raise ModelError("generation_config.json asks for beams that sample; not served: set do_sample to false")
    if any(token >= vocabulary for word in filled.bad_words_ids or [] for token in word):
        raise ModelError(f"generation_config.json bans a token outside the vocabulary of {vocabulary}; remove it there")
