"""Server-sent events of one streamed chat completion.

Frames are put together from text made once per answer; per token only its own text is encoded. The shapes are those of
`ChatCompletionChunk` in openai-openapi.
"""

import json

from parley.contract.errors import ParleyError
from parley.contract.openai import Usage
from parley.engine.runner import FinishReason

DONE = "data: [DONE]\n\n"
KEEP_ALIVE = ": keep-alive\n\n"


class Chunks:
    """Frames of one answer.

    Args:
        completion_id: the same in every chunk.
        created: Unix time in seconds.
        model: the served model's name.
        include_usage: whether a usage chunk comes last; the other chunks then say `"usage": null`.
    """

    def __init__(self, completion_id: str, created: int, model: str, include_usage: bool) -> None:
        self._head = (
            f'data: {{"id":{json.dumps(completion_id)},"object":"chat.completion.chunk",'
            f'"created":{created},"model":{json.dumps(model)},"choices":['
        )
        self._tail = f'],"usage":null}}\n\n' if include_usage else "]}\n\n"

    def role(self) -> str:
        """The first chunk."""
        return self._choice('{"role":"assistant","content":""}')

    def text(self, text: str) -> str:
        """A chunk with some more of the answer."""
        return self._choice(f'{{"content":{json.dumps(text, ensure_ascii=False)}}}')

    def finish(self, reason: FinishReason) -> str:
        """The chunk that says why the answer ended."""
        return self._choice("{}", f'"{reason}"')

    def usage(self, usage: Usage) -> str:
        """The usage chunk."""
        return f'{self._head}],"usage":{usage.model_dump_json()}}}\n\n'

    def _choice(self, delta: str, reason: str = "null") -> str:
        return f'{self._head}{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{reason}}}{self._tail}'


def error_frame(error: ParleyError) -> str:
    """The terminal event of an answer that failed; no `[DONE]` follows it."""
    return f"data: {json.dumps(error.body(), ensure_ascii=False)}\n\n"
