"""Draws tokens at random for one answer, from random numbers of its own."""

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


class Draw:
    """The sampling of one answer: the tokens that `generate` would draw after `torch.manual_seed(seed)`.

    Args:
        config: temperature, top_k, top_p and min_p are read.
        seed: None draws another answer each time.
        device: where the scores are.
    """

    def __init__(self, config: GenerationConfig, seed: int | None, device: torch.device) -> None:
        self._warpers = _warpers(config)
        self._random = torch.Generator(device)
        if seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(seed)

    def __call__(self, scores: Tensor) -> int:
        """The next token, from scores of shape (vocabulary,) of which at least one is finite."""
        chances = self._warpers(None, scores[None]).softmax(dim=-1)
        return int(torch.multinomial(chances, num_samples=1, generator=self._random))


def _warpers(config: GenerationConfig) -> LogitsProcessorList:
    """In the order in which `generate` applies them."""
    warpers = LogitsProcessorList()
    if config.temperature != 1.0:
        warpers.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k > 0:
        warpers.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1.0:
        warpers.append(TopPLogitsWarper(config.top_p))
    if config.min_p is not None:
        warpers.append(MinPLogitsWarper(config.min_p))
    return warpers
