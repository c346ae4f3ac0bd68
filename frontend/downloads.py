"""The conversation as files, in UTF-8; each holds the text as it came, and tells which answers were cut."""

import csv
import io
import json
from collections.abc import Sequence

from conversation import Turn


def as_csv(turns: Sequence[Turn]) -> bytes:
    """Columns role, content and note, as RFC 4180 has it."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["role", "content", "note"])
    writer.writerows([*turn.message, turn.cut] for turn in turns)
    return text.getvalue().encode()


def as_json(turns: Sequence[Turn]) -> bytes:
    """The `history` that `POST /chat` takes, and nothing around it; it ignores the `note` of an answer that was cut."""
    history = [turn.message._asdict() | ({"note": turn.cut} if turn.cut else {}) for turn in turns]
    return json.dumps(history, ensure_ascii=False, indent=2).encode()


def as_markdown(turns: Sequence[Turn]) -> bytes:
    """A heading for each turn, and its text as it is."""
    names = {"user": "You", "assistant": "Parley"}
    heads = [names[turn.message.role] + (f" ({turn.cut})" if turn.cut else "") for turn in turns]
    parts = [f"## {head}\n\n{turn.message.content}" for head, turn in zip(heads, turns, strict=True)]
    return "\n\n".join(parts).encode() + b"\n"
