"""How people type: punctuation, short forms and misspellings. Case is left alone: the chat template takes it away.

One in eight misspellings of a word is kept out of the corpus and left for the evaluation: which ones is
decided by a checksum of the misspelt word, so that both sides agree without sharing a list.
"""

import re
import string
from random import Random
from zlib import crc32

_NEAR = {"a": "sq", "b": "vn", "c": "xv", "d": "sf", "e": "wr", "f": "dg", "g": "fh", "h": "gj", "i": "uo", "j": "hk"}
_NEAR |= {"k": "jl", "l": "k", "m": "n", "n": "bm", "o": "ip", "p": "o", "r": "et", "s": "ad", "t": "ry", "u": "yi"}
_SHORT = {"you": "u", "are": "r", "please": "pls", "what is": "whats", "who is": "whos", "because": "cuz"}
_SHORT |= {"do not": "dont", "what's": "whats", "who's": "whos", "and": "&", "about": "abt", "your": "ur"}
_SMALL = {"the", "a", "an", "is", "does", "did", "do", "of", "in", "was", "me", "are", "to", "has", "for", "it", "you"}
_FILLERS = (
    "like",
    "just",
    "really",
    "even",
    "actually",
    "maybe",
    "um",
    "uh",
    "well",
    "so",
    "kind of",
    "you know",
    "sort of",
)
_GAPS = ("  ", "  ", "   ", "...", "... ", " ... ", "..", " - ", ", ", " / ", "\n")
_WORD = re.compile(r"[^\W\d_]{4,}")


def is_held_out(misspelt: str) -> bool:
    """Whether a misspelt word belongs to the evaluation and may not occur in the corpus."""
    return crc32(misspelt.lower().encode()) % 8 == 0


def misspell(word: str, rng: Random, held_out: bool = False) -> str:
    """One slip of the keyboard in a word of four letters or more, from the side asked for.

    Gives the word itself when a few tries find no such slip.
    """
    for _ in range(40):
        slip = _slip(word, rng)
        if slip.lower() != word.lower() and is_held_out(slip) == held_out:
            return slip
    return word


def _slip(word: str, rng: Random) -> str:
    at = rng.randrange(1, len(word) - 1)
    kind = rng.random()
    if kind < 0.3:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind < 0.6:
        return word[:at] + word[at + 1 :]
    if kind < 0.75:
        return word[:at] + word[at] + word[at:]
    near = _NEAR.get(word[at].lower()) or string.ascii_lowercase
    return word[:at] + rng.choice(near) + word[at + (kind < 0.9) :]


def noisy(text: str, rng: Random, keep: str = "") -> str:
    """The text as somebody may type it; the word `keep` is never misspelt."""
    if rng.random() < 0.16:
        text = _with_other_words(text, rng, keep)
    if rng.random() < 0.3:
        text = _with_misspelt_name(text, rng, keep)
    if rng.random() < 0.26:
        text = _with_slips(text, rng, keep)
    if rng.random() < 0.1:
        text = _with_short_forms(text, rng)
    text = _punctuated(text, rng)
    return _spaced(text, rng) if rng.random() < 0.035 else text


def _with_misspelt_name(text: str, rng: Random, keep: str) -> str:
    """One or two slips in a name, told by its capital."""
    names = [found for found in _WORD.finditer(text) if found[0][0].isupper() and found[0] not in keep]
    if not names:
        return text
    found = rng.choice(names)
    slipped = misspell(found[0], rng)
    if len(slipped) > 6 and rng.random() < 0.35:
        slipped = misspell(slipped, rng)
    return text[: found.start()] + slipped + text[found.end() :]


def _with_slips(text: str, rng: Random, keep: str) -> str:
    """Misspell one to three words; names, told by their capitals, more often than others."""
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
        words = [found for found in _WORD.finditer(text) if found[0] not in keep]
        if not words:
            return text
        weights = [4 if found[0][0].isupper() and found.start() else 1 for found in words]
        found = rng.choices(words, weights)[0]
        text = text[: found.start()] + misspell(found[0], rng) + text[found.end() :]
    return text


def _with_other_words(text: str, rng: Random, keep: str) -> str:
    """Leave small words out, as in a telegram, or put one in that changes nothing."""
    words = text.split()
    small = [at for at, word in enumerate(words) if word.lower() in _SMALL and word not in keep.split()]
    if small and len(words) > 3 and rng.random() < 0.6:
        for at in sorted(rng.sample(small, min(len(small), rng.choice((1, 1, 1, 2, 3)))), reverse=True):
            del words[at]
    elif len(words) > 2 and not keep:
        words.insert(rng.randrange(len(words)), rng.choice(_FILLERS))
    return " ".join(words)


def _with_short_forms(text: str, rng: Random) -> str:
    for long, short in _SHORT.items():
        if rng.random() < 0.5:
            text = re.sub(rf"\b{long}\b", short, text)
    return text


def _punctuated(text: str, rng: Random) -> str:
    if not text[-1].isalnum():
        return text
    draw = rng.random()
    if draw < 0.5:
        return text + rng.choice(("?", "?", "?", "?", ".", "??", " ?", "!", "?!"))
    if draw < 0.68:
        return re.sub(r"['.,-]", rng.choice(("", "", " ")), text).strip() or text
    return text


def _spaced(text: str, rng: Random) -> str:
    """The text with odd gaps between the words: doubled blanks, dots, dashes."""
    gap = rng.choice(_GAPS)
    first, *others = text.split(" ")
    spread = first + "".join((gap if rng.random() < 0.6 else " ") + word for word in others)
    return rng.choice(("", "", " ", "... ", "- ")) + spread + rng.choice(("", "", " ", "...", ".."))
