"""An answer as the client gets it: whole, or put together from a stream, or a server's error in our words."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import requests
import urllib3

from parley.contract.errors import WIRE, ErrorCode, ParleyError
from parley.contract.event_stream import EventData, EventTooLong
from parley.contract.openai import Usage

BROKEN_OFF = "The connection broke before the answer was complete."
SILENT = "The service was silent for too long; the answer was given up."
NO_CHAT = "What answers at this address is not a chat service."

_CODE_FOR_STATUS = {wire.status: code for code, wire in WIRE.items()} | {
    400: ErrorCode.INVALID_VALUE,
    404: ErrorCode.NOT_FOUND,
    408: ErrorCode.DEADLINE_EXCEEDED,
    429: ErrorCode.RATE_LIMIT_EXCEEDED,
    500: ErrorCode.INTERNAL_ERROR,
    502: ErrorCode.UPSTREAM_ERROR,
    503: ErrorCode.ENGINE_UNAVAILABLE,
}
"""For servers whose error bodies have no code of ours."""


@dataclass(frozen=True)
class Reply:
    """A complete answer. `usage` is None where the server does not count."""

    text: str
    usage: Usage | None
    finish_reason: str | None
    model: str

    @property
    def limited(self) -> bool:
        """Whether it ended at its token or time limit, and not where the model ended it."""
        return self.finish_reason == "length"


class ReplyText:
    """A streamed answer, put together from the bytes of its events. Reads no socket.

    An answer is complete with `[DONE]` only.
    """

    def __init__(self) -> None:
        self._events = EventData()
        self._text: list[str] = []
        self._usage: Usage | None = None
        self._finish_reason: str | None = None
        self._model = ""
        self.complete = False

    @property
    def reply(self) -> Reply:
        """The answer, once it is complete; raises `RuntimeError` before."""
        if not self.complete:
            raise RuntimeError("the answer is not complete: read it to its end first")
        return Reply("".join(self._text), self._usage, self._finish_reason, self._model)

    def feed(self, block: bytes) -> Iterator[str]:
        """The pieces of text that some more bytes bring; they are never empty.

        Raises:
            ParleyError: for an error frame, and for what is no chat completion.
        """
        try:
            for data in self._events.feed(block):
                if data == b"[DONE]":
                    self.complete = True
                    return
                if piece := self._take(data):
                    self._text.append(piece)
                    yield piece
        except EventTooLong as error:
            raise ParleyError(ErrorCode.UPSTREAM_ERROR, NO_CHAT) from error

    def _take(self, data: bytes) -> str:
        """Notes what a chunk says beside its text, and returns the text."""
        chunk = parsed(data)
        try:
            if error := chunk.get("error"):
                raise told_error({"error": error}, 500, None)
            self._usage = usage_of(chunk.get("usage")) or self._usage
            self._model = chunk.get("model") or self._model
            if not chunk.get("choices"):
                return ""
            choice = chunk["choices"][0]
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            return choice["delta"].get("content") or ""
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ParleyError(ErrorCode.UPSTREAM_ERROR, NO_CHAT) from error


class ReplyStream:
    """An answer under way: iterate over its pieces of text, then read `reply`. Pieces are never empty."""

    def __init__(self, response: requests.Response) -> None:
        self._response = response
        self._answer = ReplyText()

    def __enter__(self) -> "ReplyStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def reply(self) -> Reply:
        """The answer, once the iteration has ended; raises `RuntimeError` before."""
        return self._answer.reply

    def close(self) -> None:
        """Ends the answer: on the server too, if it is not complete. For the thread that iterates."""
        if self._answer.complete:
            self._response.raw.drain_conn()  # the end of the chunked body, so that the connection can be used again
        self._response.close()

    def cancel(self) -> None:
        """Wakes the thread that iterates with a `ParleyError`, for it to close the connection. For any other thread."""
        with suppress(OSError, RuntimeError):  # the answer has just ended
            self._response.raw.shutdown()

    def __iter__(self) -> Iterator[str]:
        """Pieces of text as they arrive.

        Raises:
            ParleyError: for an error frame, silence longer than the client's timeout, or a stream cut before `[DONE]`.
        """
        while block := self._read():
            yield from self._answer.feed(block)
            if self._answer.complete:
                return
        raise ParleyError(ErrorCode.UPSTREAM_ERROR, BROKEN_OFF)

    def _read(self) -> bytes:
        """The bytes that are there, at least one; empty at the end of the connection."""
        try:
            return self._response.raw.read1(decode_content=True) or b""
        except urllib3.exceptions.ReadTimeoutError as error:
            raise ParleyError(ErrorCode.DEADLINE_EXCEEDED, SILENT) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ParleyError(ErrorCode.UPSTREAM_ERROR, BROKEN_OFF) from error


def usage_of(counted: Any) -> Usage | None:
    """The counts, with the details that only some servers give."""
    if not counted:
        return None
    details = counted.get("prompt_tokens_details") or {}
    known = {key: value for key, value in details.items() if value is not None}
    return Usage.model_validate({**counted, "prompt_tokens_details": known})


def told_error(body: Any, status: int, retry_after: str | None) -> ParleyError:
    """A server's error body as ours: OpenAI's shape, vLLM's numeric codes, SGLang's flat one, BentoML's bare text."""
    told = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(told, dict):
        told = {"message": told if isinstance(told, str) else None}
    try:
        known = ErrorCode(str(told.get("code")))
    except ValueError:
        known = _CODE_FOR_STATUS.get(status, ErrorCode.UPSTREAM_ERROR)
    param = told.get("param")
    message = str(told.get("message") or f"The service answered with HTTP {status}.")
    seconds = float(retry_after) if retry_after and retry_after.isdecimal() else None
    return ParleyError(known, message, param if isinstance(param, str) else None, seconds)


def parsed(data: bytes) -> Any:
    """What some JSON says; raises `ParleyError` for what is none."""
    try:
        return json.loads(data)
    except ValueError as error:
        raise ParleyError(ErrorCode.UPSTREAM_ERROR, NO_CHAT) from error
