"""A thesaurus: the fixed words of a wording are swapped for others that mean the same."""

import re
from random import Random

_TOKEN = re.compile(r"\{\w+\}|[\w'-]+")
_ARTICLE = re.compile(r"\ban? $")
_LONGEST = 8  # words of a phrase
_UNTOUCHED = 0.45
_SWAPS = (1, 1, 2, 2, 3)


class Thesaurus:
    """Groups of words and phrases that may stand for one another.

    Templates repeat the words that their authors thought of; people use others. Swapping them in every template
    teaches the model that the words of a group mean the same.
    """

    def __init__(self, groups: list[str]) -> None:
        members = [group.split("|") for group in groups]
        self._others = {word: [other for other in group if other != word] for group in members for word in group}

    def swapped(self, text: str, rng: Random) -> str:
        """The text with up to three phrases swapped, often none; slots such as `{n}` stay as they are."""
        if rng.random() < _UNTOUCHED:
            return text
        found = self._found(text)
        for start, end in sorted(rng.sample(found, min(len(found), rng.choice(_SWAPS))), reverse=True):
            text = _with_article(text[:start], rng.choice(self._others[text[start:end]])) + text[end:]
        return text

    def _found(self, text: str) -> list[tuple[int, int]]:
        """Where phrases of the thesaurus stand, the longest at each place, none over another."""
        spans = [token.span() for token in _TOKEN.finditer(text)]
        found: list[tuple[int, int]] = []
        at = 0
        while at < len(spans):
            ends = range(min(at + _LONGEST, len(spans)), at, -1)
            last = next((end for end in ends if text[spans[at][0] : spans[end - 1][1]] in self._others), None)
            if last is not None:
                found.append((spans[at][0], spans[last - 1][1]))
            at = last or at + 1
        return found


def _with_article(before: str, phrase: str) -> str:
    """The phrase after what stands before it, whose `a` or `an` follows the phrase's first letter."""
    return _ARTICLE.sub("an " if phrase[0] in "aeiou" else "a ", before) + phrase
