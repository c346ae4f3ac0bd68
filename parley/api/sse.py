"""Server-sent events of one streamed chat completion.

Frames are put together from text made once per completion; per token only its own text is encoded. The shapes are those
of `ChatCompletionChunk` in openai-openapi.
"""

import json
from collections.abc import Sequence
from json.encoder import encode_basestring  # what `json.dumps` calls for a text

from parley.contract.errors import ParleyError
from parley.contract.openai import TokenLogprob, Usage
from parley.engine.engine import Delta, Finish

DONE = "data: [DONE]\n\n"


def comment(text: str) -> str:
    """A line that readers of events skip."""
    return f": {text}\n\n"


_LINE_ENDS = {ord(character): f"\\u{ord(character):04x}" for character in "\u0085\u2028\u2029"}


def one_line(content: str) -> str:
    """JSON without the characters that end a line for readers who cut text and not bytes, httpx's for one."""
    return content if content.isascii() else content.translate(_LINE_ENDS)


KEEP_ALIVE = comment("keep-alive")
KEEP_ALIVE_SECONDS = 10.0
"""After so long without an event, a comment shows that the answer is still on its way."""


class Chunks:
    """Frames of one completion, whose answers are told apart by their index.

    Args:
        completion_id: the same in every chunk.
        created: Unix time in seconds.
        model: the served model's name.
        include_usage: whether a usage chunk comes last; the other chunks then say `"usage": null`.
        logprobs: whether chunks with text have the log-probabilities of their tokens.
    """

    def __init__(self, completion_id: str, created: int, model: str, include_usage: bool, logprobs: bool) -> None:
        self._head = (
            f'data: {{"id":{json.dumps(completion_id)},"object":"chat.completion.chunk",'
            f'"created":{created},"model":{json.dumps(model)},"choices":['
        )
        self._logprobs = logprobs
        self._tail = '],"usage":null}\n\n' if include_usage else "]}\n\n"
        self._text_tail = '},"logprobs":null,"finish_reason":null}' + self._tail

    def role(self, index: int) -> str:
        """The first chunk of one answer."""
        return self._choice(index, '{"role":"assistant","content":""}')

    def text(self, event: Delta | Finish, logprobs: Sequence[TokenLogprob]) -> str:
        """A chunk with some more of an answer."""
        text = one_line(encode_basestring(event.text))
        if self._logprobs:
            return self._choice(event.id, f'{{"content":{text}}}', _told(logprobs))
        return f'{self._head}{{"index":{event.id},"delta":{{"content":{text}{self._text_tail}'

    def last(self, event: Finish, logprobs: Sequence[TokenLogprob]) -> str:
        """The rest of an answer, and the chunk that says why it ended."""
        rest = self.text(event, logprobs) if event.text or logprobs else ""
        return rest + self._choice(event.id, "{}", reason=f'"{event.reason}"')

    def usage(self, usage: Usage) -> str:
        """The usage chunk."""
        return f'{self._head}],"usage":{one_line(usage.model_dump_json())}}}\n\n'

    def _choice(self, index: int, delta: str, logprobs: str = "null", reason: str = "null") -> str:
        choice = f'{{"index":{index},"delta":{delta},"logprobs":{logprobs},"finish_reason":{reason}}}'
        return f"{self._head}{choice}{self._tail}"


def _told(logprobs: Sequence[TokenLogprob]) -> str:
    content = ",".join(logprob.model_dump_json() for logprob in logprobs)
    return f'{{"content":[{one_line(content)}],"refusal":null}}'


def error_frame(error: ParleyError) -> str:
    """The terminal event of an answer that failed; no `[DONE]` follows it."""
    return f"data: {one_line(json.dumps(error.body(), ensure_ascii=False))}\n\n"
