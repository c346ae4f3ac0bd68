"""A case: a conversation's user turns and what the last reply has to hold."""

import re
from dataclasses import dataclass

GROUPS = ("facts", "understanding", "conversation", "small talk", "declines", "robustness")


@dataclass(frozen=True)
class Case:
    """One case. Each item of `want` is words parted by `|`, one of which must occur; none of `deny` may."""

    group: str
    turns: tuple[str, ...]
    want: tuple[str, ...]
    deny: tuple[str, ...] = ()

    def is_met_by(self, reply: str) -> bool:
        """Whether a reply holds what is wanted and nothing that is denied. Case does not matter."""
        text = plain(reply)
        wanted = all(any(plain(word) in text for word in item.split("|")) for item in self.want)
        return wanted and not any(plain(word) in text for word in self.deny)


def plain(text: str) -> str:
    """The text in lower case with single blanks."""
    return re.sub(r"\s+", " ", text.lower()).strip()
