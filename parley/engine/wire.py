"""The private protocol between the API worker and its engine process.

A frame is a 4-byte big-endian length and that many bytes of msgpack. Both ends are ours, on a socket pair that no
other process holds; frames are decoded into these types only, and nothing is ever unpickled.
"""

import struct
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Struct

from parley.engine.engine import Event
from parley.engine.runner import Job, ModelInfo


class Add(Struct, frozen=True, array_like=True, tag="add"):
    """Start this job."""

    job: Job


class Cancel(Struct, frozen=True, array_like=True, tag="cancel"):
    """Forget this job; no further event of it follows the next frame."""

    id: int


class Ready(Struct, frozen=True, array_like=True, tag="ready"):
    """The model is loaded."""

    info: ModelInfo


class LoadFailed(Struct, frozen=True, array_like=True, tag="load_failed"):
    """The model cannot be loaded; the process exits. `message` is one line with cause and way out."""

    message: str


class Beat(Struct, frozen=True, array_like=True, tag="beat"):
    """The process is alive; `steps` counts finished steps, `busy` says whether one is under way."""

    steps: int
    busy: bool
    cache_usage: float | None = None
    """From 0 to 1; None where the runner does not tell."""


class Events(Struct, frozen=True, array_like=True, tag="events"):
    """What one step or a few produced, for all jobs."""

    events: list[Event]


Command = Add | Cancel
Report = Ready | LoadFailed | Beat | Events

T = TypeVar("T")

_LENGTH = struct.Struct(">I")
_encoder = msgspec.msgpack.Encoder()


def frame(message: Command | Report) -> bytes:
    """One message as bytes to send."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class Frames(Generic[T]):
    """Cuts a byte stream into messages of one type."""

    def __init__(self, kind: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[T]:
        """The messages completed by `data`, in order."""
        self._buffer += data
        messages, start = [], 0
        while (body := start + _LENGTH.size) <= len(self._buffer):
            end = body + _LENGTH.unpack_from(self._buffer, start)[0]
            if end > len(self._buffer):
                break
            messages.append(self._decoder.decode(memoryview(self._buffer)[body:end]))
            start = end
        del self._buffer[:start]
        return messages
