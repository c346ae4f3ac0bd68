"""`GET /docs.json`: the OpenAPI document (3.1) of every route, BentoML's native and built-in ones included.

BentoML's own document knows neither our errors nor our limits, and takes every answer of `/chat` for a string.
"""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from fastapi.openapi.utils import get_openapi
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute

from parley.api.keys import OPEN_PATHS
from parley.contract.chat import ChatReply, ChatRequest
from parley.contract.errors import WIRE, ErrorCode
from parley.contract.health import Readiness
from parley.contract.limits import Limits

VERSION = "1"
"""Of the API, as in `/v1`."""

STREAMED = "/v1/chat/completions"

Schema = dict[str, Any]

_EVENT: Schema = {
    "type": "object",
    "description": "One server-sent event.",
    "properties": {
        "data": {
            "type": "string",
            "description": "A `chat.completion.chunk` as JSON; in the end `[DONE]`, or an error as JSON without it.",
        }
    },
    "required": ["data"],
}
"""Until OpenAPI 3.2 has `itemSchema`, the schema of an event stream is read as that of each event."""


native = APIRouter()
"""Routes that BentoML or `Gate` answer: they are here for the document only."""


@native.post("/chat", tags=["Chat"])
async def chat(body: ChatRequest) -> ChatReply:  # type: ignore[empty-body]
    """One reply, to either published form of a chat request."""


@native.get("/readyz", tags=["Health"], responses={503: {"model": Readiness, "description": "Not ready"}})
async def readyz() -> Readiness:  # type: ignore[empty-body]
    """Whether the service can answer now, and why not if it cannot."""


@native.get("/livez", tags=["Health"], response_class=PlainTextResponse)
async def livez() -> str:  # type: ignore[empty-body]
    """Whether the process answers at all."""


@native.get("/healthz", tags=["Health"], response_class=PlainTextResponse)
async def healthz() -> str:  # type: ignore[empty-body]
    """The older name of `/livez`."""


def document(routes: Sequence[BaseRoute], limits: Limits, keyed: bool) -> Schema:
    """The document.

    Args:
        routes: those of the mounted app.
        limits: of this service; they are told as bounds of the fields.
        keyed: whether a key is asked for.
    """
    told: Schema = get_openapi(title="Parley", version=VERSION, routes=[*native.routes, *routes])
    told["servers"] = [{"url": "."}]
    components = told["components"]
    if keyed:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in told["paths"].items():
        for operation in operations.values():
            operation["responses"] |= errors()
            operation["responses"].pop("422", None)
            operation["security"] = [{"key": []}] if keyed and path not in OPEN_PATHS else []
    _tell_of_streams(told["paths"][STREAMED]["post"])
    for fastapis_own in ("HTTPValidationError", "ValidationError"):
        del components["schemas"][fastapis_own]
    components["schemas"] = {"Error": error_schema(), **bounded(exact(components["schemas"]), limits)}
    return told


def _tell_of_streams(operation: Schema) -> None:
    """Adds what FastAPI knows nothing of: an answer as server-sent events, and how to ask for it."""
    operation["responses"]["200"]["content"]["text/event-stream"] = {"schema": _EVENT}
    asked = {"messages": [{"role": "user", "content": "Who is Batman?"}]}
    examples = {"whole": {"value": asked}, "streamed": {"value": {**asked, "stream": True}}}
    operation["requestBody"]["content"]["application/json"]["examples"] = examples


def exact(value: Any) -> Any:
    """The same with whole numbers as such: FastAPI makes floats of all bounds, and those of `seed` have 63 bits."""
    if isinstance(value, dict):
        return {key: exact(item) for key, item in value.items()}
    if isinstance(value, list):
        return [exact(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def errors() -> Schema:
    """The responses that any route may give."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        "4XX": {"description": "The request was refused", "content": content},
        "5XX": {"description": "The service could not answer", "content": content},
    }


def error_schema() -> Schema:
    """The schema of every error: that of `ParleyError.body`."""
    fields: Schema = {
        "message": {"type": "string"},
        "type": {"enum": sorted({wire.type for wire in WIRE.values()})},
        "param": {"type": ["string", "null"]},
        "code": {"enum": list(ErrorCode)},
    }
    return _object({"error": _object(fields)})


def _object(fields: Schema) -> Schema:
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def bounded(schemas: Schema, limits: Limits) -> Schema:
    """The schemas of the contract, with the limits of this service as bounds of their fields."""
    for name, fields in _bounds(limits).items():
        for field, bounds in fields.items():
            for keyword, bound in bounds.items():
                _bind(schemas[name]["properties"][field], keyword, bound)
    return schemas


def _bounds(limits: Limits) -> dict[str, dict[str, dict[str, int]]]:
    """Schema, field, keyword of JSON Schema, bound."""
    text = {"maxLength": limits.message_chars}
    turns = {"maxItems": limits.messages}
    return {
        "ChatCompletionRequest": {
            "messages": turns,
            "n": {"maximum": limits.n},
            "stop": {"maxItems": limits.stop, "maxLength": limits.stop_chars},
            "top_logprobs": {"maximum": limits.top_logprobs},
            "max_tokens": {"maximum": limits.max_tokens},
            "max_completion_tokens": {"maximum": limits.max_tokens},
            "logit_bias": {"maxProperties": limits.logit_bias},
        },
        "ChatMessage": {"content": text},
        "TextPart": {"text": text},
        "TokenizeRequest": {"messages": turns, "prompt": text},
        "HistoryRequest": {"history": turns},
        "Turn": {"content": text},
        "ConversationRequest": {
            "user_input": text,
            "past_user_inputs": turns | text,
            "generated_responses": turns | text,
        },
    }


_BINDS = {"maximum": "integer", "maxItems": "array", "maxLength": "string", "maxProperties": "object"}
"""The type that each keyword is for."""


def _bind(schema: Schema, keyword: str, bound: int) -> None:
    """Sets a bound in a schema, in its alternatives, and in the items of its lists, wherever the type fits."""
    if schema.get("type") == _BINDS[keyword]:
        schema[keyword] = bound
    items = [schema["items"]] if "items" in schema else []
    for inner in [*schema.get("anyOf", []), *schema.get("oneOf", []), *items]:
        _bind(inner, keyword, bound)
