"""What an upstream says that it serves: the answer of `GET /models`, with what vLLM and Parley add to OpenAI's."""

import msgspec
from msgspec import Struct

from parley.engine.model import ModelError
from parley.engine.runner import ModelInfo

STANDARD = ["max_tokens", "temperature", "top_p", "seed", "frequency_penalty", "presence_penalty", "stop"]
"""Parameters of OpenAI's specification that every compatible server is expected to honour."""

_PASSED_ON = {*STANDARD, "top_k", "repetition_penalty"}

_SHOWN = 5


class Listed(Struct):
    """One model."""

    id: str
    context_length: int | None = None
    max_model_len: int | None = None
    parameters: list[str] | None = None


class _Listing(Struct):
    data: list[Listed]


def choose(listing: bytes | None, asked: str | None) -> Listed:
    """The model to ask for.

    Args:
        listing: the body of `GET /models`; None where there is no such route.
        asked: the model that the settings name. It need not be listed: servers know aliases, too.

    Raises:
        ModelError: when nothing is asked for and there is no choosing.
    """
    models = _models(listing)
    if asked is not None:
        return next((model for model in models if model.id == asked), Listed(asked))
    if len(models) == 1:
        return models[0]
    names = ", ".join(model.id for model in models[:_SHOWN]) + (", ..." if len(models) > _SHOWN else "")
    found = f"lists {len(models)} models ({names})" if models else "lists no models"
    raise ModelError(f"the upstream {found}: set PARLEY_UPSTREAM_MODEL to the one to use")


def info_of(model: Listed) -> ModelInfo:
    """What a model of an upstream is like, as far as it tells. A context length of 0 stands for an unknown one."""
    told = model.parameters
    parameters = STANDARD if told is None else [name for name in told if name in _PASSED_ON]
    context = model.context_length or model.max_model_len or 0
    return ModelInfo("upstream", "set by PARLEY_ENGINE", "remote", "unknown", context, parameters)


def _models(listing: bytes | None) -> list[Listed]:
    try:
        return msgspec.json.decode(listing, type=_Listing).data if listing is not None else []
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
