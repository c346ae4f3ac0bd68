"""Server-sent events as bytes: what every reader of a streamed answer cuts them with."""

from collections.abc import Iterator

LONGEST_EVENT = 1 << 18
"""Most bytes of one event. A chunk of a chat completion has a few hundred; some servers send whole answers as one."""


class EventTooLong(ValueError):
    """An event is longer than any chat completion needs."""


class EventData:
    """Cuts a byte stream into the data of its server-sent events (WHATWG HTML, section 9.2.6).

    Comments and other fields are skipped. Network chunks may be cut anywhere, inside a UTF-8 character too: nothing is
    decoded before an event is whole.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, block: bytes) -> Iterator[bytes]:
        """Data of the events that `block` completes, in order.

        Raises:
            EventTooLong: for an event of more than `LONGEST_EVENT` bytes, whole or not.
        """
        *lines, self._rest = (self._rest + block).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[5:].strip())
                self._size += len(line)
            elif line in (b"", b"\r") and self._data:
                self._check(0)
                yield b"\n".join(self._data)
                self._data.clear()
                self._size = 0
        self._check(len(self._rest))

    def _check(self, more: int) -> None:
        """Raises `EventTooLong` when the event so far, with so many bytes more, is too long."""
        if self._size + more > LONGEST_EVENT:
            raise EventTooLong
