"""OpenAI's chat completions, as its public specification (openai-openapi 2.3.0) gives them.

A field of the specification that is not here is refused by its name, never ignored; one that is null is as if it were
not there.
"""

import json
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    Tag,
    model_serializer,
    model_validator,
)

from parley.contract.chat import Message
from parley.contract.schema import SchemaFault, check_schema

ContextPolicy = Literal["error", "drop_oldest_turns", "keep_recent"]
"""What to do with a conversation that is longer than the model's context: refuse it with both numbers; drop whole turns
from its start, system messages kept; or keep its last tokens."""

CONTEXT_POLICIES: tuple[ContextPolicy, ...] = get_args(ContextPolicy)

LogitBias = Annotated[
    dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Annotated[StrictFloat, Field(ge=-100, le=100)]],
    Field(json_schema_extra={"additionalProperties": False}),
]
"""What is added to the logits of token ids, which JSON's keys have as text."""

ANY_OBJECT = '{"type":"object"}'
"""The schema that `json_object` stands for."""


def _without_nulls(value: Any) -> Any:
    """Clients write null for what they do not use, fields that we do not know among them."""
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    _nulls = model_validator(mode="before")(_without_nulls)


class TextPart(_Strict):
    """A part of a message; parts are joined without anything between them."""

    type: Literal["text"]
    text: StrictStr


def _content_form(content: Any) -> str:
    return "parts-form" if isinstance(content, list) else "text-form"


class ChatMessage(_Strict):
    """One message. `developer` is OpenAI's newer name for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[StrictStr, Tag("text-form")] | Annotated[list[TextPart], Field(min_length=1), Tag("parts-form")],
        Discriminator(_content_form),
    ]
    name: StrictStr | None = None
    """Who speaks; chat templates have no place for it."""

    def message(self) -> Message:
        """The message as the prompt is built from it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


def _enforceable(schema: dict[str, Any]) -> dict[str, Any]:
    try:
        check_schema(schema)
    except SchemaFault as fault:
        raise ValueError(str(fault)) from None
    return schema


class JsonSchema(_Strict):
    """A named schema. `strict` makes no difference: every answer is held to it while it is decoded."""

    name: Annotated[StrictStr, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: StrictStr | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema"), BeforeValidator(_enforceable)]
    strict: StrictBool | None = None


class ResponseFormat(_Strict):
    """What the answer must be: text, any JSON object, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_with_its_type(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema is given with the type json_schema, and with no other")
        return self

    def schema_text(self) -> str | None:
        """The schema that the answer must meet, as JSON text; None for free text."""
        if self.json_schema is not None:
            return json.dumps(self.json_schema.schema_)
        return ANY_OBJECT if self.type == "json_object" else None


def _boolean(value: Any) -> Any:
    """Refuses 0, which is as good as false to a `Literal`."""
    if not isinstance(value, bool):
        raise ValueError("input should be false")
    return value


class StreamOptions(_Strict):
    """Options of a streamed answer."""

    include_usage: StrictBool = False
    include_obfuscation: Annotated[Literal[False], BeforeValidator(_boolean)] | None = None
    """OpenAI pads its chunks, so that their lengths tell less; here nothing does."""


def _stop_form(stop: Any) -> str:
    return "list-form" if isinstance(stop, (list, tuple)) else "text-form"


StopString = Annotated[StrictStr, Field(min_length=1)]
Stop = Annotated[
    Annotated[StopString, Tag("text-form")] | Annotated[list[StopString], Tag("list-form")], Discriminator(_stop_form)
]
"""One string or several; told apart first, so that a fault in a list is told of its item."""


class ChatCompletionRequest(_Strict):
    """The body of `POST /v1/chat/completions`.

    `top_k`, `repetition_penalty` and `context_policy` are additions that vLLM's and others' clients know how to send.
    """

    model_config = ConfigDict(
        json_schema_extra={"example": {"model": "pocket", "messages": [{"role": "user", "content": "Who is Batman?"}]}},
    )

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    model: StrictStr | None = None
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[StrictInt, Field(ge=1, le=2**31)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1, le=2**31)] | None = None
    temperature: Annotated[StrictFloat, Field(ge=0, le=2)] | None = None
    top_p: Annotated[StrictFloat, Field(ge=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=-1, le=2**31)] | None = None
    """How many of the likeliest tokens may be drawn; 0 and -1 are all of them, as in vLLM."""
    repetition_penalty: Annotated[StrictFloat, Field(ge=0.01, le=10)] | None = None
    frequency_penalty: Annotated[StrictFloat, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[StrictFloat, Field(ge=-2, le=2)] | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | None = None
    n: Annotated[StrictInt, Field(ge=1, le=2**31)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=2**31)] | None = None
    logit_bias: LogitBias | None = None
    response_format: ResponseFormat | None = None
    user: StrictStr | None = None
    metadata: dict[StrictStr, StrictStr] | None = None
    store: Annotated[Literal[False], BeforeValidator(_boolean)] | None = None
    context_policy: ContextPolicy | None = None

    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, whichever way it was given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @model_validator(mode="after")
    def _goes_together(self) -> "ChatCompletionRequest":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only allowed with stream")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only allowed with logprobs")
        return self

    def token_limit(self) -> int | None:
        """Most tokens to generate; the newer field wins."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class PromptTokensDetails(BaseModel):
    """How the prompt was read. `dropped_*` tell what the context policy left out; what nobody knows is left out."""

    model_config = ConfigDict(extra="allow")

    cached_tokens: int | None = None
    """Tokens found in the prefix cache; not told where the engine does not tell it."""
    dropped_messages: int = 0
    dropped_tokens: int = 0

    @model_serializer(mode="wrap")
    def _known(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in plain(self).items() if value is not None}


class Usage(BaseModel):
    """Counted tokens of one answer, with whatever else an upstream tells of them, its cost for one."""

    model_config = ConfigDict(extra="allow")

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class CompletionMessage(BaseModel):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class TopLogprob(BaseModel):
    """One token. `bytes` is null for a token that is a part of a character only."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """One token of the answer, and the likeliest ones at its place."""

    top_logprobs: list[TopLogprob] = []


class ChoiceLogprobs(BaseModel):
    """Natural logarithms of the probabilities that the model gave to the tokens of an answer."""

    content: list[TokenLogprob]
    refusal: None = None


class Choice(BaseModel):
    """One answer."""

    index: int = 0
    message: CompletionMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """The answer of `POST /v1/chat/completions` without `stream`. `created` is in Unix seconds."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None
    """Null where an upstream did not count its tokens."""


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
