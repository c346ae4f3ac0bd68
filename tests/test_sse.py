"""Frames of streamed answers, as readers cut them."""

import json

from parley.api.sse import Chunks
from parley.contract.openai import TokenLogprob
from parley.engine.engine import Delta

ENDS = "one\u2028two\u2029three\u0085four\x0bfive \u00e9"
"""A text with every character that ends a line for `str.splitlines`, but for those that JSON escapes anyway."""


def test_no_character_of_a_text_ends_a_line() -> None:
    """Fails when readers that cut decoded text into lines, httpx's for one, lose the rest of a chunk."""
    logprob = TokenLogprob(token=ENDS, logprob=-1.0, bytes=None)
    for wanted in (False, True):
        chunks = Chunks("id", 0, "m", include_usage=False, logprobs=wanted)
        line, rest = chunks.text(Delta(0, ENDS, 1), [logprob] if wanted else []).splitlines()
        (choice,) = json.loads(line.removeprefix("data: "))["choices"]
        assert (choice["delta"]["content"], rest) == (ENDS, "")
        assert [told["token"] for told in (choice["logprobs"] or {"content": []})["content"]] == [ENDS] * wanted
        assert "\u00e9" in line
