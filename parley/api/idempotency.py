"""`Idempotency-Key`: a request that is sent again gets the answer of the first time, without a second generation.

An answer is made once, in a task of its own that goes on when its client is cut off, since a client that sends a key
means to ask again. Everybody who asks with the same key and body, at once or later, follows its recording from the
beginning, each with the patience of their own. What has failed is made anew for the next who asks.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from parley.api.body import replay
from parley.api.deadline import HEADERS, deadline_of, kept
from parley.api.disconnect import unless_disconnected
from parley.api.errors import ErrorResponse
from parley.api.protocol import WRITE, refuse
from parley.api.sse import DONE, KEEP_ALIVE, error_frame
from parley.api.streamed import piece
from parley.api.terms import POLICY_HEADER
from parley.contract.errors import ErrorCode, ParleyError
from parley.telemetry.record import current

HEADER = "idempotency-key"
REPLAYED = "idempotent-replayed"
"""A header of responses that were not made for this request."""

LONGEST_KEY = 255
MOST_RECORDINGS = 1024
MOST_BYTES = 64 * 1024 * 1024
"""What is kept; beyond it the oldest recordings go before their time."""

App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Asked:
    """What identifies a repeated request: its API key, its Idempotency-Key and a digest of all that shapes its answer:
    its route, its context policy and its body."""

    owner: str
    key: str
    digest: bytes

    @classmethod
    def by(cls, owner: str, scope: Scope, body: bytes) -> "Asked | None":
        """None for a request that sends no `Idempotency-Key`.

        Raises:
            ParleyError: `INVALID_VALUE` for a key that is empty, too long, or no printable ASCII.
        """
        headers = Headers(scope=scope)
        key = headers.get(HEADER)
        if key is None:
            return None
        if not (0 < len(key) <= LONGEST_KEY and key.isascii() and key.isprintable()):
            message = f"{HEADER}: 1 to {LONGEST_KEY} printable ASCII characters are expected"
            raise ParleyError(ErrorCode.INVALID_VALUE, message, HEADER)
        shape = f"{scope['method']} {scope['path']}\n{headers.get(POLICY_HEADER, '')}\n"
        return cls(owner, key, hashlib.sha256(shape.encode() + body).digest())


class Recording:
    """One response while it is made, and after."""

    def __init__(self, digest: bytes, began: float, response: Callable[[Send], Awaitable[None]]) -> None:
        self.digest = digest
        self.began = began
        self.size = 0
        self._messages: list[Message] = []
        self._news = asyncio.Event()
        self._task = asyncio.ensure_future(response(self._take))
        self._task.add_done_callback(lambda _: self._tell())

    @property
    def under_way(self) -> bool:
        """Whether it is still being made."""
        return not self._task.done()

    @property
    def failed(self) -> bool:
        """Whether it has ended as an error, or as a stream that broke off."""
        if self.under_way:
            return False
        if not self._messages or self._messages[0]["status"] >= 400:
            return True
        bodies = [message["body"] for message in self._messages if message.get("body")]
        return self._streams and not (bodies and bodies[-1].endswith(DONE.encode()))

    async def follow(self, send: Send, again: bool, whole: float | None, streamed: float | None) -> None:
        """Sends the response from its beginning; `again` marks it as one that was not made for this request.

        Raises whatever the making of the response raised. If nothing of an answer is there by the deadline for a whole
        one or, once it shows that it is streamed, for that, it raises `DEADLINE_EXCEEDED`, or ends the stream with it.
        Deadlines are in the event loop's time.
        """
        sent = 0
        while True:
            news, ended, begun = self._news, not self.under_way, self._has_begun
            for message in self._messages[sent:]:
                await send(_marked(message) if again and sent == 0 else message)
                sent += 1
            if ended:
                return self._task.result()
            deadline = None if begun else streamed if self._streams else whole
            try:
                async with kept(deadline):
                    await news.wait()
            except ParleyError as error:
                if not sent:
                    raise
                current().code = error.code
                await send(piece(error_frame(error)))
                return await send({"type": "http.response.body", "body": b"", "more_body": False})

    @property
    def _streams(self) -> bool:
        """Whether there is the head of a streamed answer."""
        head = Headers(raw=self._messages[0]["headers"]) if self._messages else Headers()
        return head.get("content-type", "").startswith("text/event-stream")

    @property
    def _has_begun(self) -> bool:
        """Whether there is more than a head and signs of life."""
        signs = (b"", KEEP_ALIVE.encode())
        return any(message.get("body", b"") not in signs for message in self._messages)

    async def ended(self) -> None:
        """Waits until nothing more will be added."""
        await asyncio.wait({self._task})

    async def _take(self, message: Message) -> None:
        self._messages.append(message)
        self.size += len(message.get("body", b""))
        self._tell()

    def _tell(self) -> None:
        """Wakes all who follow; each waits for an event that it took before it looked, so that none is missed."""
        self._news.set()
        self._news = asyncio.Event()


class Recordings:
    """All recordings of a service.

    Args:
        window: seconds for which a response is kept.
    """

    def __init__(self, window: float) -> None:
        self._window = window
        self._kept: dict[tuple[str, str], Recording] = {}

    async def answer(self, asked: Asked, app: App, scope: Scope, receive: Receive, send: Send, body: bytes) -> None:
        """Answers from a recording, which is made now if there is none.

        Raises:
            ParleyError: `IDEMPOTENCY_CONFLICT` when the key came with another body before, which has not failed;
                `INVALID_VALUE` for a deadline that cannot be read.
        """
        whole, streamed = (deadline_of(Headers(scope=scope), streams) for streams in (False, True))
        now = asyncio.get_running_loop().time()
        self._forget(now)
        name = (asked.owner, asked.key)
        recording = self._kept.get(name)
        if recording is not None and recording.failed:
            recording = None
        again = recording is not None
        if recording is not None and recording.digest != asked.digest:
            message = "This Idempotency-Key was used for another request; take a new key for a new request."
            raise ParleyError(ErrorCode.IDEMPOTENCY_CONFLICT, message, HEADER)
        if recording is None:
            # Nobody's deadline ends it, and every piece comes by `send`, so that the recording has it.
            headers = [(name, value) for name, value in scope["headers"] if name.decode("latin-1") not in HEADERS]
            recorded = {**scope, "headers": headers, WRITE: refuse}
            recording = Recording(asked.digest, now, lambda take: app(recorded, replay(body, _never), take))
            self._kept[name] = recording
        try:
            await unless_disconnected(receive, recording.follow(send, again, whole, streamed))
        except ParleyError as error:
            if error.code is not ErrorCode.DEADLINE_EXCEEDED:
                raise
            await ErrorResponse(error)(scope, receive, send)  # before the recording has ended
        finally:
            if not again:  # its tokens and its end belong into the record of the request that it is made for
                await recording.ended()

    def _forget(self, now: float) -> None:
        """Drops what is too old, and the oldest of what is too much."""
        size = sum(recording.size for recording in self._kept.values())
        for name, recording in list(self._kept.items()):
            too_much = size > MOST_BYTES or len(self._kept) > MOST_RECORDINGS
            if not recording.under_way and (too_much or now - recording.began > self._window):
                del self._kept[name]
                size -= recording.size


def _marked(start: Message) -> Message:
    headers = MutableHeaders(raw=list(start["headers"]))
    headers[REPLAYED] = "true"
    return {**start, "headers": headers.raw}


async def _never() -> Message:
    """The connection of a response that does not end with any client's."""
    await asyncio.Event().wait()
    raise AssertionError
