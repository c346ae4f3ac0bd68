"""Words for prompts: made up from syllables, so that every tokenizer trained here knows them and no text is needed.

The same number always gives the same text. Words are plain ASCII: no token holds half a character, and so each one can
be streamed the moment it exists.
"""

import itertools
import random

_SYLLABLES = ["".join(pair) for pair in itertools.product("bcdfghjklmnprstvwz", "aeiou")]

COMMON = ["".join(pair) for pair in itertools.product(_SYLLABLES, _SYLLABLES)]
"""8,100 words of two syllables: prompts are made of these."""


def text(number: random.Random, words: int) -> str:
    """So many words, drawn with a seeded source."""
    return " ".join(number.choices(COMMON, k=words))


def rare(count: int) -> list[str]:
    """Longer words that only fill up the vocabulary of a large tokenizer."""
    longer = itertools.product(_SYLLABLES, _SYLLABLES, _SYLLABLES)
    return ["".join(parts) for parts in itertools.islice(longer, 0, None, 11)][:count]
