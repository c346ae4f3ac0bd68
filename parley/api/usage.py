"""Usage: what answers took, as it is told to clients."""

from collections.abc import Sequence

from msgspec.structs import replace

from parley.contract.openai import PromptTokensDetails, Usage
from parley.engine.engine import Finish
from parley.prompt import Prompt


def combined(finishes: Sequence[Finish]) -> Finish:
    """The counts of several answers to one prompt, which counts once."""
    if len(finishes) == 1:
        return finishes[0]
    counts = [finish.completion_tokens for finish in finishes]
    tokens = None if None in counts else sum(filter(None, counts))
    cached = max((finish.cached_tokens for finish in finishes if finish.cached_tokens is not None), default=None)
    prompt = next((finish.prompt_tokens for finish in finishes if finish.prompt_tokens is not None), None)
    return replace(
        finishes[0], prompt_tokens=prompt, completion_tokens=tokens, cached_tokens=cached, usage=summed(finishes)
    )


def summed(finishes: Sequence[Finish]) -> dict[str, float]:
    """What an upstream told beside its counts, for several answers together: amounts, such as the cost."""
    amounts = [(name, value) for finish in finishes for name, value in finish.usage.items() if type(value) is float]
    return {name: sum(value for other, value in amounts if other == name) for name, _ in amounts}


def usage(finish: Finish, prompt: Prompt) -> Usage | None:
    """Tokens as the engine counted them, with what else an upstream told; None where it did not tell its counts."""
    if finish.prompt_tokens is None or finish.completion_tokens is None:
        return None
    details = {
        **(finish.usage.get("prompt_tokens_details") or {}),
        "cached_tokens": finish.cached_tokens,
        "dropped_messages": prompt.dropped_messages,
        "dropped_tokens": prompt.dropped_tokens,
    }
    counts = {
        "prompt_tokens": finish.prompt_tokens,
        "completion_tokens": finish.completion_tokens,
        "total_tokens": finish.prompt_tokens + finish.completion_tokens,
        "prompt_tokens_details": PromptTokensDetails.model_validate(details),
    }
    return Usage.model_validate({**finish.usage, **counts})
