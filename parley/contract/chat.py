"""`POST /chat`: two published forms on one route, told apart by their fields.

Form 1 is the shape of transformers' former `Conversation`: past user inputs, the replies to them, and the new input;
the answer is the reply as a JSON string. Form 2 is a history of role and content; the answer is a message with its
token usage.
"""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, RootModel, Tag, model_validator

Role = Literal["system", "user", "assistant"]


class Message(NamedTuple):
    """One message as the prompt is built from it, whatever form it came in."""

    role: Role
    content: str


class Turn(BaseModel):
    """One turn of a conversation; what clients add beside role and content (a cost, an id) is ignored."""

    model_config = ConfigDict(frozen=True)

    role: Literal["user", "assistant"]
    content: str


def _listed(given: Any) -> Any:
    """Serializers of other languages write null for what is not there."""
    return [] if given is None else given


Inputs = Annotated[list[str], BeforeValidator(_listed, json_schema_input_type=list[str] | None)]


class ConversationRequest(BaseModel):
    """Form 1. `past_user_inputs[i]` was answered by `generated_responses[i]`."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"user_input": "Who is Batman?", "past_user_inputs": [], "generated_responses": []}
        }
    )

    past_user_inputs: Inputs = Field(default_factory=list)
    generated_responses: Inputs = Field(default_factory=list)
    user_input: str

    @model_validator(mode="after")
    def _pairs(self) -> "ConversationRequest":
        asked, answered = len(self.past_user_inputs), len(self.generated_responses)
        if asked != answered:
            raise ValueError(
                f"generated_responses: past_user_inputs has {asked} items and generated_responses has {answered}: "
                "they must have the same length, one response to each input"
            )
        return self

    def messages(self) -> list[Message]:
        """The conversation in order, the new input last."""
        past = [
            message
            for asked, answered in zip(self.past_user_inputs, self.generated_responses, strict=True)
            for message in (Message("user", asked), Message("assistant", answered))
        ]
        return [*past, Message("user", self.user_input)]


class HistoryRequest(BaseModel):
    """Form 2. The history ends with the user turn that is to be answered."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"history": [{"role": "user", "content": "Who is Batman?"}]}}
    )

    history: list[Turn] = Field(min_length=1)

    @model_validator(mode="after")
    def _ends_with_user(self) -> "HistoryRequest":
        if self.history[-1].role != "user":
            raise ValueError("history: its last item must be a user turn, the one that is answered")
        return self

    def messages(self) -> list[Message]:
        """The conversation in order."""
        return [Message(turn.role, turn.content) for turn in self.history]


def _form(body: Any) -> str | None:
    """The form of a body; None where it is neither, and where it is both, as one of them would be ignored."""
    if not isinstance(body, (dict, BaseModel)):
        return None
    given = body if isinstance(body, dict) else dict(body)
    fields = {"history": "history_form", "user_input": "conversation_form"}
    forms = [form for field, form in fields.items() if given.get(field) is not None]
    return forms[0] if len(forms) == 1 else None


class ChatRequest(
    RootModel[
        Annotated[
            Annotated[ConversationRequest, Tag("conversation_form")] | Annotated[HistoryRequest, Tag("history_form")],
            Discriminator(
                _form,
                custom_error_type="unknown_form",
                custom_error_message="the body needs either user_input, with what was said before it, or history",
            ),
        ]
    ]
):
    """The body of `POST /chat`, in either form."""


class TokenUsage(BaseModel):
    """Counted tokens of one reply."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AssistantMessage(BaseModel):
    """The reply as a turn that can be appended to the history as it is."""

    role: Literal["assistant"] = "assistant"
    content: str


class HistoryReply(BaseModel):
    """The answer to form 2."""

    message: AssistantMessage
    token_usage: TokenUsage | None
    """Null where an upstream did not count its tokens."""


class ChatReply(RootModel[str | HistoryReply]):
    """The answer of `POST /chat`: a JSON string to form 1, a message with usage to form 2."""
