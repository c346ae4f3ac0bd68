"""The conversation as files, in UTF-8; each holds the text as it came."""

import csv
import io
import json
from collections.abc import Sequence

from parley.contract.chat import Message


def as_csv(messages: Sequence[Message]) -> bytes:
    """Columns role and content, as RFC 4180 has it."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["role", "content"])
    writer.writerows(messages)
    return text.getvalue().encode()


def as_json(messages: Sequence[Message]) -> bytes:
    """The `history` that `POST /chat` takes, and nothing around it."""
    history = [{"role": role, "content": content} for role, content in messages]
    return json.dumps(history, ensure_ascii=False, indent=2).encode()


def as_markdown(messages: Sequence[Message]) -> bytes:
    """A heading for each turn, and its text as it is."""
    names = {"user": "You", "assistant": "Parley"}
    return "\n\n".join(f"## {names[role]}\n\n{content}" for role, content in messages).encode() + b"\n"
