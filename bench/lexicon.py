"""Words for prompts: made up from syllables, so that no text is needed and every tokenizer trained here knows them.

The same seed always gives the same text. Words are plain ASCII: a token never holds half a character, so that each one
can be streamed the moment it exists.
"""

import itertools
import random

_SYLLABLES = ["".join(pair) for pair in itertools.product("bcdfghjklmnprstvwz", "aeiou")]

COMMON = ["".join(pair) for pair in itertools.product(_SYLLABLES[::6], _SYLLABLES)]
"""1,350 words of two syllables: prompts are made of these, and each is one token of every tokenizer trained here."""


def text(source: random.Random, words: int) -> str:
    """So many words, drawn from a seeded source."""
    return " ".join(source.choices(COMMON, k=words))


def rare(count: int) -> list[str]:
    """Words of three syllables, which only fill up a large vocabulary."""
    longer = itertools.product(_SYLLABLES, _SYLLABLES, _SYLLABLES)
    return ["".join(parts) for parts in itertools.islice(longer, 0, None, 11)][:count]
