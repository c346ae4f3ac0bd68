"""A case: a conversation's user turns and what the last reply has to hold."""

import re
from dataclasses import dataclass

GROUPS = ("facts", "understanding", "conversation", "small talk", "declines", "robustness", "not known")
NOT_KNOWN = "don't know that about"
"""What an honest reply says when the subject is known and the fact is not."""


@dataclass(frozen=True)
class Case:
    """One case. Each item of `want` is words parted by `|`, one of which must occur; none of `deny` may.

    `rivals` are the values of other subjects, written as they are known: none may stand in the reply as whole words.
    """

    group: str
    turns: tuple[str, ...]
    want: tuple[str, ...]
    deny: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()

    def is_met_by(self, reply: str) -> bool:
        """Whether a reply holds what is wanted and nothing that is denied, whatever its case, and no rival."""
        text = plain(reply)
        wanted = all(any(plain(word) in text for word in item.split("|")) for item in self.want)
        return wanted and not any(plain(word) in text for word in self.deny) and not self.rivals_in(reply)

    def rivals_in(self, reply: str) -> list[str]:
        """The values of other subjects that the reply holds."""
        return [rival for rival in self.rivals if rival in reply and _stands_in(rival, reply)]


def _stands_in(value: str, text: str) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text))


def plain(text: str) -> str:
    """The text in lower case with single blanks."""
    return re.sub(r"\s+", " ", text.lower()).strip()
