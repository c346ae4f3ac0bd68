"""The settings: one frozen object, read once from the environment, loud when something is wrong."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from parley.contract.limits import Limits
from parley.contract.openai import ContextPolicy
from parley.startup import PIPE

PREFIX = "PARLEY_"
LIMIT_PREFIX = "PARLEY_LIMIT_"

DEFAULT_SYSTEM_PROMPT = (
    "You are Parley, a comic-book assistant. You answer from the perspective of comic books "
    "and politely decline what is not about them."
)

NO_SETTINGS = frozenset({"PARLEY_URL", "PARLEY_API_KEY", PIPE})
"""Variables of the client programs, which may share an environment with the service, and what its processes pass on."""

SECRETS = frozenset({"PARLEY_UPSTREAM_API_KEY", "PARLEY_UPSTREAM_URL"})
"""Settings whose values are not shown: an address can hold a password, though none should."""


class SettingsError(Exception):
    """A setting that cannot be used; the message is one line with its name, its value and what is allowed."""


def _listed(value: Any) -> Any:
    """`a, b` as a tuple of two."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


_UPSTREAM = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(:\d+)?(/[\w.~/-]*)?", re.IGNORECASE | re.ASCII)


def _base_url(address: str) -> str:
    """The address without its last slash, and with `/v1` where it has no path."""
    parts = urlsplit(address)
    if not _UPSTREAM.fullmatch(address) or parts.port == 0:
        raise ValueError("something like http://127.0.0.1:8000/v1 is expected; PARLEY_UPSTREAM_API_KEY is for the key")
    return address.rstrip("/") + ("" if parts.path.strip("/") else "/v1")


def _header_word(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]+", value.get_secret_value()):
        raise ValueError("printable ASCII characters without spaces are expected")
    return value


def _expanded(path: Path) -> Path:
    """The path with the home of `~` or `~name` in it."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"there is no home directory for {path.parts[0]}") from error


Expanded = Annotated[Path, AfterValidator(_expanded)]

Origin = Annotated[str, Field(pattern=r"^(\*|https?://[a-zA-Z0-9.\-\[\]:]+)$")]
"""A scheme and a host, with a port if it is not the usual one, and nothing after it; `*` is all."""


class Settings(BaseModel):
    """Every setting of the service; `PARLEY_MAX_QUEUE=8` sets `max_queue`, `PARLEY_LIMIT_N=4` sets `limits.n`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: Annotated[str, Field(min_length=1)] = "pocket"
    """`pocket`, a local folder, or a Hugging Face id such as `owner/name` or `owner/name@revision`."""
    served_model_name: Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,200}$")] | None = None
    """What clients call the model; by default `pocket`, its id, or its folder's name."""
    engine: Literal["auto", "openvino", "transformers", "seq2seq", "echo", "upstream"] = "auto"
    """Which engine serves; `auto` chooses for the model and the machine, and says why in `GET /v1/models`."""
    upstream_url: Annotated[str | None, Field(validate_default=True)] = None
    """For `PARLEY_ENGINE=upstream`: an OpenAI-compatible server; `/v1` is added to an address without a path."""
    upstream_api_key: Annotated[SecretStr, AfterValidator(_header_word)] | None = None
    """What the upstream is asked with; never shown, and never sent anywhere else."""
    upstream_model: Annotated[str, Field(min_length=1)] | None = None
    """The upstream's model; by default the only one that it lists."""
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?|mps)$")] | None = None
    """`cpu`, `cuda`, `cuda:1` or `mps`; by default the best one that the engine finds."""
    dtype: Literal["float32", "bfloat16", "float16", "int8"] | None = None
    """Precision: `float32`, `bfloat16`, `float16` or `int8`; by default what the engine computes exactly and fast on
    this machine."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Threads of the engine; by default one for each core of the container's CPU quota, or the library's choice."""
    max_batch: Annotated[int, Field(ge=1, le=1024)] = 32
    """Most answers decoded together."""
    kv_cache_gb: Annotated[float, Field(gt=0, le=100_000)] | None = None
    """GiB of memory for the key-value cache; by default for a quarter of a full batch of longest conversations within a
    share of the machine's memory, and with seq2seq that share."""
    max_queue: Annotated[int, Field(ge=0, le=100_000)] = 64
    """Most answers that wait for a place in the batch; the next one gets 429."""
    system_prompt: str = DEFAULT_SYSTEM_PROMPT
    """Put first in every conversation that has no system message of its own; empty for none."""
    context_policy: ContextPolicy | None = None
    """For a conversation that is too long: `error`, `drop_oldest_turns` or `keep_recent`; by default
    `drop_oldest_turns` for models with a chat template and `keep_recent` for others."""
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    """Longest answer where neither the request nor the model's generation config says one; an upstream keeps to its
    own."""
    answer_timeout: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    """Seconds after which an answer is ended: with the reason `length` if it has begun, with an error if not."""
    limits: Limits = Limits()
    """How large a request may be: each `PARLEY_LIMIT_*` below."""
    keys_file: Expanded | None = None
    """API keys, in the format of `parley.api.keys`; without it no key is asked for."""
    allow_anonymous: bool = False
    """Lets the service listen on more than loopback without keys."""
    cors_origins: Annotated[tuple[Origin, ...], BeforeValidator(_listed)] = ()
    """Origins whose pages may ask, such as `https://chat.example.com`, divided by commas; `*` for all."""
    idempotency_window: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    """Seconds for which the answer to a request with an `Idempotency-Key` is kept."""
    cache: Expanded = Path.home() / ".cache" / "parley"
    """Where converted models are kept, and the environment that `parley convert` exports in."""
    load_timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds that a model may take to load."""
    step_timeout: Annotated[float, Field(gt=0)] = 120.0
    """Seconds that one step of the model may take before the engine counts as hung."""
    drain_grace: Annotated[float, Field(ge=0)] = 30.0
    """Seconds that running answers get to finish when the service is asked to stop."""

    @field_validator("model")
    @classmethod
    def _model(cls, value: str) -> str:
        """A folder may begin with `~`, and is looked for where it is needed."""
        _expanded(Path(value))
        return value

    @field_validator("context_policy")
    @classmethod
    def _policy(cls, value: ContextPolicy | None, info: ValidationInfo) -> ContextPolicy | None:
        """A policy other than refusing needs tokens counted, which an upstream alone can do."""
        if value not in (None, "error") and info.data.get("engine") == "upstream":
            raise ValueError("an upstream keeps to its own: leave it unset with PARLEY_ENGINE=upstream")
        return value

    @field_validator("upstream_url")
    @classmethod
    def _upstream(cls, value: str | None, info: ValidationInfo) -> str | None:
        """The address goes with its engine, and ends where `/chat/completions` follows."""
        if (value is not None) != (info.data.get("engine") == "upstream"):
            raise ValueError("an address is needed with PARLEY_ENGINE=upstream, and with no other")
        return value and _base_url(value)

    def placed(self) -> dict[str, str]:
        """Variables that name the same places wherever they are read: a Bento's workers run in the Bento's folder."""
        places = {"PARLEY_CACHE": str(self.cache.absolute())}
        model = Path(self.model).expanduser()
        if self.model != "pocket" and model.is_dir():
            places["PARLEY_MODEL"] = str(model.absolute())
        if self.keys_file is not None:
            places["PARLEY_KEYS_FILE"] = str(self.keys_file.absolute())
        return places

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings":
        """Reads all `PARLEY_*` variables.

        Raises:
            SettingsError: for a name that does not exist (the nearest one is suggested) or a value that is not allowed.
        """
        given = {key: value for key, value in environ.items() if _is_ours(key)}
        places = _variables()
        values: dict[str, Any] = {"limits": {}}
        for key, value in given.items():
            if key not in places:
                raise SettingsError(f"{key} is not a setting{_suggestion(key, list(places))}")
            group, field = places[key]
            (values[group] if group else values)[field] = value
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SettingsError(_first_fault(error, given)) from error


def _is_ours(key: str) -> bool:
    return key.startswith(PREFIX) and not key.startswith(f"{PREFIX}UI_") and key not in NO_SETTINGS


def _variables() -> dict[str, tuple[str, str]]:
    """Every variable, with its group and its field: `PARLEY_LIMIT_N` is `("limits", "n")`."""
    own = {f"{PREFIX}{field.upper()}": ("", field) for field in Settings.model_fields if field != "limits"}
    return own | {f"{LIMIT_PREFIX}{field.upper()}": ("limits", field) for field in Limits.model_fields}


def _suggestion(key: str, names: list[str]) -> str:
    near = get_close_matches(key, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _first_fault(error: ValidationError, given: Mapping[str, str]) -> str:
    fault = error.errors()[0]
    place = fault["loc"][:2] if fault["loc"][0] == "limits" else ("", fault["loc"][0])
    name = next(key for key, known in _variables().items() if known == place)
    value = "..." if name in SECRETS else given.get(name, "")
    shown = value if value.isprintable() else ascii(value)  # a line break would make two lines of one
    return f"{name}={shown}: {fault['msg']}"
