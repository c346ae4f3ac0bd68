"""Reading: one streamed chat completion as far as it has come, from bytes to the engine's events.

The shapes are those of `CreateChatCompletionStreamResponse` in openai-openapi, read leniently where servers differ and
strictly where an answer could be cut without a word: it is whole only if it says why it ended.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from parley.contract.errors import ErrorCode, ParleyError
from parley.contract.event_stream import EventData, EventTooLong
from parley.engine.engine import Delta, Finish
from parley.engine.runner import FinishReason
from parley.engine.upstream.fault import BROKEN, STRANGE, from_event

LONGEST_ANSWER = 1 << 26
"""Most bytes of one answer's event stream: some 200,000 tokens."""

DONE = b"[DONE]"
FILTERED = "content_filter"
"""OpenAI's word for an answer that may not be told."""

_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "model_length": "length",
}
"""OpenAI's words, TGI's (`eos_token`, `stop_sequence`) and Mistral's (`model_length`)."""

Count = Annotated[int, Meta(ge=0, le=2**53)]


class _Delta(Struct):
    content: str | list[Any] | None = None
    refusal: str | None = None


class _Choice(Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(Struct):
    choices: list[_Choice] | None = None
    usage: dict[str, Any] | None = None
    error: Any = None


class _Details(Struct):
    cached_tokens: Count | None = None


class _Counts(Struct):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: _Details | None = None


_decoder = msgspec.json.Decoder(_Chunk)


class Reading:
    """Reads one answer.

    Args:
        stream_id: the id of the events.
        key: what the upstream was asked with; an answer that repeats it is not passed on.
    """

    def __init__(self, stream_id: int, key: str | None) -> None:
        self._id = stream_id
        self._key = key.encode() if key else None
        self._events = EventData()
        self._received = 0
        self._reason: str | None = None
        self._usage: dict[str, Any] = {}
        self.done = False
        """True once the upstream said that nothing follows."""

    @property
    def ended(self) -> bool:
        """Whether the answer has said why it ended: only its usage may follow."""
        return self._reason is not None

    def take(self, block: bytes) -> Delta:
        """What some more bytes of the body say.

        Raises:
            ParleyError: for an error event, and for what is no chat completion.
        """
        self._received += len(block)
        if self._received > LONGEST_ANSWER:
            raise ParleyError(ErrorCode.UPSTREAM_ERROR, "The upstream's answer does not end.")
        pieces: list[str] = []
        try:
            for data in self._events.feed(block):
                self._take_event(data, pieces)
        except (msgspec.DecodeError, UnicodeDecodeError, EventTooLong, RecursionError) as error:
            raise ParleyError(ErrorCode.UPSTREAM_ERROR, STRANGE) from error
        return Delta(self._id, "".join(pieces), len(pieces))

    def finish(self) -> Finish:
        """The terminal event, once the body has ended.

        Raises:
            ParleyError: when the answer did not end, or not in a way that we can tell.
        """
        if self._reason is None:
            raise ParleyError(ErrorCode.UPSTREAM_ERROR, BROKEN)
        if self._reason == FILTERED:
            raise ParleyError(ErrorCode.UPSTREAM_REFUSED, "A filter of the upstream ended this answer.")
        if self._reason not in _REASONS:
            raise ParleyError(ErrorCode.UPSTREAM_ERROR, "The upstream gave this answer up.")
        counts = self._counts()
        cached = counts.prompt_tokens_details.cached_tokens if counts.prompt_tokens_details else None
        return Finish(
            self._id,
            "",
            _REASONS[self._reason],
            counts.prompt_tokens,
            counts.completion_tokens,
            cached,
            usage=self._usage,
        )

    def _take_event(self, data: bytes, pieces: list[str]) -> None:
        if self._key and self._key in data:
            raise ParleyError(ErrorCode.UPSTREAM_ERROR, "The upstream repeated this service's API key.")
        if self.done or data == DONE:
            self.done = True
            return
        chunk = _decoder.decode(data)
        if chunk.error:
            raise from_event(chunk.error)
        self._usage = _plain(chunk.usage) or self._usage
        for choice in chunk.choices or ():
            self._reason = choice.finish_reason or self._reason
            if choice.delta and (text := _text(choice.delta.content) or choice.delta.refusal):
                pieces.append(text)

    def _counts(self) -> _Counts:
        try:
            return msgspec.convert(self._usage, _Counts)
        except msgspec.ValidationError as error:
            raise ParleyError(ErrorCode.UPSTREAM_ERROR, STRANGE) from error


def _text(content: str | list[Any] | None) -> str:
    """The text of a piece; of Mistral's parts, thoughts and references are left out."""
    if not isinstance(content, list):
        return content or ""
    texts = (part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text")
    return "".join(text for text in texts if isinstance(text, str))


def _plain(usage: dict[str, Any] | None) -> dict[str, Any]:
    """Counts, amounts, words, and one level of details: no usage object needs more, and nothing deeper is passed on."""
    return {
        name: {key: inner for key, inner in value.items() if _is_scalar(inner)} if isinstance(value, dict) else value
        for name, value in (usage or {}).items()
        if isinstance(value, dict) or _is_scalar(value)
    }


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))
