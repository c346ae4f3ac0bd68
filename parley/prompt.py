"""From turns to token ids: the chat template or the join that the model knows, and the context policy.

What is dropped from a long conversation is decided here, from counts alone; the tokenizer is the only thing called.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from jinja2 import TemplateError

from parley.contract.chat import Message
from parley.contract.errors import ErrorCode, ParleyError
from parley.contract.openai import ContextPolicy
from parley.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """What the engine reads, and what the context policy left out to make it fit."""

    ids: list[int]
    """Token ids."""
    dropped_messages: int = 0
    dropped_tokens: int = 0
    messages: tuple[Message, ...] = ()
    """The conversation itself, for an engine that has a tokenizer of its own: `ids` is then empty."""

    @property
    def tokens(self) -> int | None:
        """How many token ids it has; None where they are not known here."""
        return None if self.messages else len(self.ids)

    @property
    def content(self) -> list[int] | tuple[Message, ...]:
        """What the engine reads."""
        return self.messages or self.ids


class Style(Protocol):
    """How one family of models reads a conversation."""

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """All token ids of the conversation, however long."""

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text alone, without anything around it."""

    @property
    def reads_system(self) -> bool:
        """Whether a system message has a place in it."""

    @property
    def policy(self) -> ContextPolicy:
        """What is done with a conversation that is too long, where nobody says."""


class ChatTemplate:
    """The model's own chat template; one without a place for a system message finds its text in the first user turn.

    Raises:
        ValueError: for a template that makes nothing of any conversation.
    """

    reads_system = True
    policy: ContextPolicy = "drop_oldest_turns"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        user = Message("user", "Hello")
        alone, told = self._read([user]), self._read([Message("system", "Be brief."), user])
        if not alone and not told:
            raise ValueError("its chat template cannot be read, or makes nothing of a conversation: mend or replace it")
        self._folds = alone is not None and told in (None, alone)

    def _read(self, messages: Sequence[Message]) -> list[int] | None:
        """What the template makes of messages; None if it refuses them."""
        try:
            return self._tokenizer.chat(messages)
        except TemplateError:
            return None

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids up to and including the generation prompt.

        Raises:
            ParleyError: `INVALID_VALUE` when the template refuses the conversation, such as two user turns in a row.
        """
        try:
            return self._tokenizer.chat(folded(messages) if self._folds else messages)
        except TemplateError:
            message = "This model's chat template does not take these messages; most want user and assistant in turns."
            raise ParleyError(ErrorCode.INVALID_VALUE, message, "messages") from None

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text alone."""
        return self._tokenizer.encode(text)


class BlenderbotJoin:
    """How transformers' conversational pipeline (until 4.41) built prompts for Blenderbot.

    Turns are joined by two spaces; a user turn has one space put before it, a reply is taken as it is (the model's
    replies begin with a space of their own); the end token closes the whole, whether or not a folder's tokenizer would
    put it there by itself.
    """

    reads_system = False
    policy: ContextPolicy = "keep_recent"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids with the closing end token."""
        text = "  ".join(f" {text}" if role == "user" else text for role, text in messages)
        return [*self._tokenizer.encode(text), *_end(self._tokenizer)]

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text alone."""
        return self._tokenizer.encode(text)


class EosJoin:
    """The same pipeline's way with models that have neither template nor join: each turn, then end-of-sequence."""

    reads_system = False
    policy: ContextPolicy = "keep_recent"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids, one end-of-sequence token after each turn."""
        eos = _end(self._tokenizer)
        turns = (self._tokenizer.encode(text) for _, text in messages)
        return [token for turn in turns for token in (*turn, *eos)]

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text alone."""
        return self._tokenizer.encode(text)


def _end(tokenizer: Tokenizer) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


class LastMessage:
    """What the echo runner reads: the last message as UTF-8 bytes."""

    reads_system = False
    policy: ContextPolicy = "keep_recent"

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """One token a byte."""
        return self.encode_text(messages[-1].content)

    def encode_text(self, text: str) -> list[int]:
        """One token a byte."""
        return list(text.encode())


def style_for(tokenizer: Tokenizer, model_type: str) -> Style:
    """The way of reading that fits a model: its chat template if it has one, else the pipeline's former joins."""
    if tokenizer.has_chat_template:
        return ChatTemplate(tokenizer)
    return BlenderbotJoin(tokenizer) if model_type.startswith("blenderbot") else EosJoin(tokenizer)


class PromptBuilder:
    """Builds prompts for one loaded model.

    Args:
        style: how the model reads a conversation.
        context_length: most tokens of a prompt and its answer together; of the prompt alone if `shared` is false.
        shared: whether prompt and answer share the context (decoder-only) or not (encoder-decoder).
        system_prompt: put first where the conversation has no system message; empty for none.
        policy: what to do with a conversation that is too long, unless the request says; None for the style's own way.
    """

    def __init__(
        self, style: Style, context_length: int, shared: bool, system_prompt: str, policy: ContextPolicy | None
    ) -> None:
        self._style = style
        self._context = context_length
        self._shared = shared
        self._system_prompt = system_prompt if style.reads_system else ""
        self._policy: ContextPolicy = policy or style.policy

    def build(self, messages: Sequence[Message], max_tokens: int | None, policy: ContextPolicy | None) -> Prompt:
        """Token ids of a conversation.

        Raises:
            ParleyError: `CONTEXT_LENGTH_EXCEEDED` when it does not fit and the policy cannot or may not shorten it;
                `UNSUPPORTED_PARAMETER` for a system message that the model has no place for.
        """
        messages = self._with_system(messages)
        ids = self._style.encode(messages)
        room = self._room(max_tokens)
        if len(ids) <= room:
            return Prompt(ids)
        return self._shorten(messages, ids, room, policy or self._policy, max_tokens)

    def tokens(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation as the model would read it, however long; raises what `build` raises."""
        return self._style.encode(self._with_system(messages))

    def text_tokens(self, text: str) -> list[int]:
        """Token ids of a text alone."""
        return self._style.encode_text(text)

    def longest_answer(self, prompt: Prompt, asked: int | None, otherwise: int) -> int:
        """Most tokens of the answer, never more than a shared context has room for.

        Args:
            prompt: what is answered.
            asked: what the request says.
            otherwise: what holds where it says nothing.
        """
        limit = asked or otherwise
        return min(limit, self._context - len(prompt.ids)) if self._shared else limit

    def _with_system(self, messages: Sequence[Message]) -> Sequence[Message]:
        self._refuse_system(messages)
        return with_system(messages, self._system_prompt)

    def _refuse_system(self, messages: Sequence[Message]) -> None:
        if self._style.reads_system:
            return
        for index, message in enumerate(messages):
            if message.role == "system":
                raise ParleyError(
                    ErrorCode.UNSUPPORTED_PARAMETER,
                    "This model has no place for a system message; leave it out.",
                    f"messages[{index}].role",
                )

    def _room(self, max_tokens: int | None) -> int:
        """Most prompt tokens: an answer keeps what was asked for it, up to half of the context."""
        if not self._shared:
            return self._context
        return self._context - min(max_tokens or self._context // 4, self._context // 2)

    def _shorten(
        self, messages: Sequence[Message], ids: list[int], room: int, policy: ContextPolicy, max_tokens: int | None
    ) -> Prompt:
        if policy == "keep_recent":
            return Prompt(ids[-room:], dropped_tokens=len(ids) - room)
        if policy == "drop_oldest_turns":
            kept = fewest_dropped(messages, lambda rest: len(self._style.encode(rest)) <= room)
            if kept is not None:
                short = self._style.encode(kept)
                return Prompt(short, len(messages) - len(kept), len(ids) - len(short))
        raise ParleyError(
            ErrorCode.CONTEXT_LENGTH_EXCEEDED,
            f"This model's maximum context length is {self._context} tokens, of which a prompt may have {room} here; "
            f"the messages have {len(ids)} tokens. Shorten them{', or lower max_tokens' if max_tokens else ''}.",
            "messages",
        )


class Passage:
    """Passes conversations on as they are, to an engine that has a tokenizer of its own: nothing is counted here.

    Args:
        system_prompt: put first where the conversation has no system message; empty for none.
    """

    def __init__(self, system_prompt: str) -> None:
        self._system_prompt = system_prompt

    def build(self, messages: Sequence[Message], max_tokens: int | None, policy: ContextPolicy | None) -> Prompt:
        """The conversation itself; what is too long is refused by the engine.

        Raises:
            ParleyError: `UNSUPPORTED_PARAMETER` for a policy that needs tokens counted.
        """
        if policy not in (None, "error"):
            raise _uncounted("context_policy")
        return Prompt([], messages=tuple(with_system(messages, self._system_prompt)))

    def tokens(self, messages: Sequence[Message]) -> list[int]:
        """Raises `ParleyError`: tokens are not known here."""
        raise _uncounted("messages")

    def text_tokens(self, text: str) -> list[int]:
        """Raises `ParleyError`: tokens are not known here."""
        raise _uncounted("prompt")

    def longest_answer(self, prompt: Prompt, asked: int | None, otherwise: int) -> int | None:
        """What the request says, if anything: the engine has a default of its own."""
        return asked


Builder = PromptBuilder | Passage


def with_system(messages: Sequence[Message], system_prompt: str) -> Sequence[Message]:
    """The conversation with a system message at its start, unless it has one or there is none to put."""
    if system_prompt and all(message.role != "system" for message in messages):
        return [Message("system", system_prompt), *messages]
    return messages


def folded(messages: Sequence[Message]) -> Sequence[Message]:
    """The conversation with the system messages at its start put before the text of the user turn that follows them."""
    first = next((index for index, message in enumerate(messages) if message.role != "system"), 0)
    if messages[first].role != "user":
        return messages
    text = "\n\n".join(message.content for message in messages[: first + 1])
    return [Message("user", text), *messages[first + 1 :]]


def _uncounted(param: str) -> ParleyError:
    message = "The model runs elsewhere, where its tokens are counted; this is not possible here."
    return ParleyError(ErrorCode.UNSUPPORTED_PARAMETER, message, param)


def fewest_dropped(messages: Sequence[Message], fits: Callable[[Sequence[Message]], bool]) -> list[Message] | None:
    """The longest end of a conversation that fits, its system messages kept; None if not even the last message does.

    Whole turns go: what is kept starts with a user message.
    """
    system = [message for message in messages if message.role == "system"]
    turns = [message for message in messages if message.role != "system"]
    starts = [index for index, turn in enumerate(turns) if index > 0 and turn.role == "user"]
    # What fits still fits when it is shorter, so a few looks are enough however long the conversation is.
    first = bisect_left(starts, True, key=lambda start: fits([*system, *turns[start:]]))
    return [*system, *turns[starts[first] :]] if first < len(starts) else None
