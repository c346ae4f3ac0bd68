"""`POST /tokenize`: what a text or a conversation costs, before it is asked. vLLM's shape of the route."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictStr, model_validator

from parley.contract.openai import ChatMessage


class TokenizeRequest(BaseModel):
    """Either `messages`, counted as a prompt with everything that the model reads around them, or a bare `prompt`."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"messages": [{"role": "user", "content": "Who is Batman?"}]}}
    )

    model: StrictStr | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    prompt: StrictStr | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> "TokenizeRequest":
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("messages: give either messages or prompt")
        return self


class Tokenized(BaseModel):
    """Token ids, their number, and the number that the model's context holds."""

    count: int
    max_model_len: int
    tokens: list[int]
