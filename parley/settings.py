"""The settings: one frozen object, read once from the environment, loud when something is wrong."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from parley.contract.openai import ContextPolicy

PREFIX = "PARLEY_"

DEFAULT_SYSTEM_PROMPT = (
    "You are Parley, a comic-book assistant. You answer from the perspective of comic books "
    "and politely decline what is not about them."
)

CLIENT_KEYS = frozenset({"PARLEY_URL", "PARLEY_API_KEY", "PARLEY_INTERNAL_STARTUP_PIPE"})
"""Variables of the client programs, which may share an environment with the service."""


class SettingsError(Exception):
    """A setting that cannot be used; the message is one line with its name, its value and what is allowed."""


class Settings(BaseModel):
    """Every setting of the service; `PARLEY_MAX_QUEUE=8` sets `max_queue`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[str, Field(min_length=1)] = "pocket"
    """`pocket`, a local folder, or a Hugging Face id such as `owner/name` or `owner/name@revision`."""
    engine: Literal["auto", "openvino", "transformers", "seq2seq", "echo"] = "auto"
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?|mps)$")] | None = None
    dtype: Literal["float32", "bfloat16", "float16", "int8"] | None = None
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    max_batch: Annotated[int, Field(ge=1, le=1024)] = 32
    """Most answers decoded together."""
    max_queue: Annotated[int, Field(ge=0, le=100_000)] = 64
    """Most requests that wait for a place in the batch; the next one gets 429."""
    system_prompt: str = DEFAULT_SYSTEM_PROMPT
    """Put first in every conversation that has no system message of its own; empty for none."""
    context_policy: ContextPolicy = "drop_oldest_turns"
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    """Longest answer where neither the request nor the model's generation config says one."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 1_048_576
    """Longest request body."""
    cache: Path = Path.home() / ".cache" / "parley"
    """Where converted weights are kept."""
    load_timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds that a model may take to load."""
    step_timeout: Annotated[float, Field(gt=0)] = 120.0
    """Seconds that one step of the model may take before the engine counts as hung."""
    drain_grace: Annotated[float, Field(ge=0)] = 30.0
    """Seconds that running answers get to finish when the service is asked to stop."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings":
        """Reads all `PARLEY_*` variables.

        Raises:
            SettingsError: for a name that does not exist (the nearest one is suggested) or a value that is not allowed.
        """
        given = {key: value for key, value in environ.items() if key.startswith(PREFIX) and key not in CLIENT_KEYS}
        fields = {key: key.removeprefix(PREFIX).lower() for key in given if not key.startswith(f"{PREFIX}UI_")}
        for key, field in fields.items():
            if field not in cls.model_fields:
                raise SettingsError(f"{key} is not a setting{_suggestion(field, list(cls.model_fields))}")
        try:
            return cls.model_validate({field: given[key] for key, field in fields.items()})
        except ValidationError as error:
            raise SettingsError(_first_fault(error)) from error


def _suggestion(field: str, known: list[str]) -> str:
    near = get_close_matches(field, known, n=1)
    return f"; did you mean {PREFIX}{near[0].upper()}?" if near else ""


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    return f"{PREFIX}{str(fault['loc'][0]).upper()}={fault['input']}: {fault['msg']}"
