"""How large a request may be: checked on the parsed body, before anything else is done with it.

Only sizes are looked at here, and whatever has another type than expected is left to the contract of its route.
"""

import json
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from parley.contract.errors import ErrorCode, ParleyError

Count = Annotated[int, Field(ge=1, le=2**31)]


class Measure(NamedTuple):
    """One size found in a request, and how large it may be."""

    param: str
    found: int
    what: str
    limit: int


class Limits(BaseModel):
    """Each limit is a setting: `PARLEY_LIMIT_N=4` sets `n`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    body_bytes: Annotated[int, Field(ge=1024, le=2**31)] = 1_048_576
    """Bytes of a request body."""
    nesting: Annotated[int, Field(ge=8, le=500)] = 32
    """Most lists and objects inside one another."""
    values: Count = 20_000
    """Values of a request body, at all levels together."""
    messages: Count = 1000
    """Messages of one conversation."""
    message_chars: Count = 100_000
    """Characters of one message."""
    n: Count = 8
    """Answers to one request."""
    stop: Annotated[int, Field(ge=0, le=1024)] = 4
    """Stop strings."""
    stop_chars: Count = 256
    """Characters of one stop string."""
    top_logprobs: Annotated[int, Field(ge=0, le=1024)] = 20
    """Alternatives of each token."""
    max_tokens: Count = 131_072
    """Largest `max_tokens` that a request may name; what the model's context leaves no room for is not generated."""
    logit_bias: Annotated[int, Field(ge=0, le=2**31)] = 300
    """Entries of `logit_bias`."""
    schema_bytes: Count = 16_384
    """Bytes of a JSON schema in `response_format`."""
    schema_depth: Count = 16
    """Levels of such a schema."""

    def check(self, body: Any) -> None:
        """Raises `ParleyError` (`INVALID_VALUE`) for the first size beyond its limit."""
        if depth(body) > self.nesting:
            raise ParleyError(
                ErrorCode.INVALID_VALUE, f"The body is nested too deeply; {self.nesting} levels are allowed."
            )
        if size(body) > self.values:
            raise ParleyError(
                ErrorCode.INVALID_VALUE, f"The body holds too many values; {self.values} are allowed at all its levels."
            )
        for param, found, what, limit in self._measures(body) if isinstance(body, dict) else ():
            if found > limit:
                raise ParleyError(ErrorCode.INVALID_VALUE, f"{param}: at most {limit} {what} are allowed here", param)

    def _measures(self, body: dict[str, Any]) -> Iterator[Measure]:
        for name in ("messages", "history", "past_user_inputs", "generated_responses"):
            yield from self._conversation(name, body.get(name))
        for name in ("user_input", "prompt"):
            if isinstance(body.get(name), str):
                yield Measure(name, len(body[name]), "characters", self.message_chars)
        yield from self._numbers(body)
        yield from self._stops(body.get("stop"))
        if isinstance(body.get("logit_bias"), dict):
            yield Measure("logit_bias", len(body["logit_bias"]), "entries", self.logit_bias)
        if isinstance(body.get("response_format"), dict):
            yield from self._schema(body["response_format"])

    def _conversation(self, name: str, messages: Any) -> Iterator[Measure]:
        if not isinstance(messages, list):
            return
        yield Measure(name, len(messages), "items", self.messages)
        for index, message in enumerate(messages):
            content = message.get("content") if isinstance(message, dict) else message
            yield Measure(f"{name}[{index}]", _length(content), "characters", self.message_chars)

    def _numbers(self, body: dict[str, Any]) -> Iterator[Measure]:
        limits = {
            "n": ("answers", self.n),
            "top_logprobs": ("alternatives", self.top_logprobs),
            "max_tokens": ("tokens", self.max_tokens),
            "max_completion_tokens": ("tokens", self.max_tokens),
        }
        for name, (what, limit) in limits.items():
            if isinstance(body.get(name), int):
                yield Measure(name, body[name], what, limit)

    def _stops(self, stop: Any) -> Iterator[Measure]:
        stops = stop if isinstance(stop, list) else [] if stop is None else [stop]
        yield Measure("stop", len(stops), "strings", self.stop)
        for text in stops:
            yield Measure("stop", _length(text), "characters of a string", self.stop_chars)

    def _schema(self, response_format: dict[str, Any]) -> Iterator[Measure]:
        size = len(json.dumps(response_format, ensure_ascii=False).encode())
        yield Measure("response_format", size, "bytes", self.schema_bytes)
        yield Measure("response_format", depth(response_format) - _WRAPPING, "levels", self.schema_depth)


_WRAPPING = 2
"""Levels of `response_format` above the schema itself: the field, and `json_schema`."""


def depth(value: Any) -> int:
    """How many lists and objects lie inside one another."""
    return sum(any(isinstance(node, (dict, list)) for node in level) for level in _levels(value))


def size(value: Any) -> int:
    """How many values there are, each list and object and what is in them."""
    return sum(map(len, _levels(value)))


def _levels(value: Any) -> Iterator[list[Any]]:
    """The values of each level, from the outside in: so no stack is needed."""
    level = [value]
    while level:
        yield level
        level = [child for node in level if isinstance(node, (dict, list)) for child in _children(node)]


def _children(node: Any) -> Any:
    return node.values() if isinstance(node, dict) else node


def _length(content: Any) -> int:
    """Characters of a message's content, text or parts."""
    if isinstance(content, list):
        return sum(
            len(part["text"]) for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return len(content) if isinstance(content, str) else 0
