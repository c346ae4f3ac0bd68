"""OpenAI's chat completions, as its public specification (openai-openapi 2.3.0) gives them.

Every field of the specification that this service cannot honour is named in `UNSUPPORTED` and refused, never ignored.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from parley.contract.chat import Message

ContextPolicy = Literal["error", "drop_oldest_turns", "keep_recent"]
"""What to do with a conversation that is longer than the model's context: refuse it with both numbers; drop whole turns
from its start, system messages kept; or keep its last tokens."""

Number = StrictInt | StrictFloat


class _Part(BaseModel):
    type: Literal["text"]
    text: StrictStr


def _joined(content: Any) -> Any:
    """Text parts as one string; anything else as it is, for pydantic to judge."""
    if isinstance(content, list) and content:
        return "".join(_Part.model_validate(part).text for part in content)
    return content


class ChatMessage(BaseModel):
    """One message. `developer` is OpenAI's newer name for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[StrictStr, BeforeValidator(_joined, json_schema_input_type=str | list[_Part])]
    name: StrictStr | None = None

    def message(self) -> Message:
        """The message as the prompt is built from it."""
        return Message("system" if self.role == "developer" else self.role, self.content)


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = ConfigDict(extra="forbid")

    include_usage: StrictBool = False


class ChatCompletionRequest(BaseModel):
    """The body of `POST /v1/chat/completions`.

    `top_k`, `repetition_penalty` and `context_policy` are additions that vLLM's and others' clients know how to send.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"model": "pocket", "messages": [{"role": "user", "content": "Who is Batman?"}]}},
    )

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    model: StrictStr | None = None
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[StrictInt, Field(ge=1, le=2**31)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1, le=2**31)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=1, le=2**31)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=10)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: (
        Annotated[StrictStr, Field(min_length=1)]
        | Annotated[list[Annotated[StrictStr, Field(min_length=1)]], Field(max_length=4)]
        | None
    ) = None
    n: Annotated[StrictInt, Field(ge=1, le=1)] | None = None
    user: StrictStr | None = None
    metadata: dict[StrictStr, StrictStr] | None = None
    store: Literal[False] | None = None
    context_policy: ContextPolicy | None = None

    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, whichever way it was given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def token_limit(self) -> int | None:
        """Most tokens to generate; the newer field wins."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class PromptTokensDetails(BaseModel):
    """How the prompt was read. `dropped_*` tell what the context policy left out."""

    cached_tokens: int = 0
    dropped_messages: int = 0
    dropped_tokens: int = 0


class Usage(BaseModel):
    """Counted tokens of one answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class CompletionMessage(BaseModel):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """One answer."""

    index: int = 0
    message: CompletionMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """The answer of `POST /v1/chat/completions` without `stream`. `created` is in Unix seconds."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Model(BaseModel):
    """One served model; what follows `owned_by` is our addition to OpenAI's shape."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "parley"
    engine: str
    engine_reason: str
    device: str
    dtype: str
    context_length: int
    parameters: list[str]
    streams: bool


class ModelList(BaseModel):
    """The answer of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[Model]
