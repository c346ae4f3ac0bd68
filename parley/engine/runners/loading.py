"""What both runners on torch check: a model that was loaded, and a prompt before the model reads it."""

from collections.abc import Mapping, Sequence
from typing import Any


def checked(model: Any, report: Mapping[str, Any]) -> Any:
    """The model, if its folder had every weight: transformers fills in random numbers for the others.

    Args:
        model: as `from_pretrained` gives it.
        report: given beside it with `output_loading_info=True`.

    Raises:
        ValueError: when a weight is missing or has another shape.
    """
    if bad := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
        raise ValueError(f"its weights do not fit its config ({bad[0]}); fetch the whole model")
    return model


def prompt_fault(prompt: Sequence[int], vocabulary: int) -> str | None:
    """Why a model with so many token ids cannot read a prompt of any length; None if it can."""
    if not prompt:
        return "the prompt has no tokens"
    if not 0 <= min(prompt) <= max(prompt) < vocabulary:
        return f"the prompt holds a token outside the vocabulary of {vocabulary}"
    return None
