"""UpstreamEngine: answers come from another server.

Rules that always hold:
1. What fails before the first byte of an answer is raised, so that our client gets a status; what fails after it is a
   terminal event, and is not tried again.
2. An answer that nobody reads any more is cancelled: its connection is closed, which tells the upstream.
3. When the upstream cannot be reached, nothing is sent until it answers again. What it refuses ends the engine only
   before it has told what it serves: what was possible once is worth another try.
"""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from parley.contract.chat import Message
from parley.contract.errors import ErrorCode, ParleyError
from parley.engine.engine import Content, Delta, Event, Failure, Generated, Health, State
from parley.engine.model import ModelError
from parley.engine.runner import EVERY_TOKEN, ModelInfo, Sampling
from parley.engine.stream import Stream
from parley.engine.upstream.fault import BROKEN, Fault, Unreachable
from parley.engine.upstream.listing import choose, info_of
from parley.engine.upstream.patience import Patience
from parley.engine.upstream.reading import Reading
from parley.engine.upstream.transport import Address, Body, Transport, translated

NUDGE_SECONDS = 10.0
"""After so long a silence, a `Delta` without tokens lets the reader show that it lives."""
USAGE_SECONDS = 3.0
"""How long more is waited for once an answer has said why it ended: gateways tell its usage and cost after that."""
LINGER_SECONDS = 1.0
"""How long the end of a body is waited for once nothing follows: without it, its connection cannot be used again."""
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 15.0


class UpstreamEngine:
    """An `Engine` in front of an OpenAI-compatible server.

    Args:
        address: where it is.
        patience: its deadlines.
    """

    def __init__(self, address: Address, patience: Patience) -> None:
        self._address = address
        self._patience = patience
        self._transport = Transport(address, patience)
        self._state = State.LOADING
        self._detail = "the upstream is being asked what it serves"
        self._model = address.model or ""
        self._limit_field = "max_tokens"
        self._ids = 0
        self._running = 0
        self._restarts = 0
        self._pumps: set[asyncio.Task[None]] = set()
        self._connecting: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        self.info: ModelInfo | None = None

    async def start(self) -> None:
        """Begins asking the upstream what it serves."""
        self._connecting = asyncio.create_task(self._connect(), name="upstream-connect")

    async def settled(self) -> Health:
        """Waits until the upstream has answered for the first time, well or not."""
        await self._settled.wait()
        return self.health()

    def health(self) -> Health:
        """How the engine is, now."""
        return Health(self._state, self._detail, self._running, self._restarts)

    def generate(self, prompt: Content, sampling: Sampling) -> Generated:
        """Streams one answer; see `Engine.generate`. `prompt` holds the messages.

        The first event raises whatever keeps the first byte from coming.
        """
        assert isinstance(prompt, tuple)
        return Generated(self._generate(prompt, sampling))

    async def _generate(self, prompt: tuple[Message, ...], sampling: Sampling) -> AsyncGenerator[Event, None]:
        if self._state is not State.READY:
            code = ErrorCode.DRAINING if self._state is State.DRAINING else ErrorCode.ENGINE_UNAVAILABLE
            raise ParleyError(code, f"Not ready: {self._detail}.", retry_after=1.0)
        self._running += 1
        try:
            async with aclosing(self._answer(prompt, sampling)) as events:
                async for event in events:
                    yield event
        finally:
            self._running -= 1

    async def drain(self, grace: float) -> int:
        """Takes nothing new, lets running answers finish for `grace` seconds, then ends them."""
        if self._state is not State.FAILED:
            self._enter(State.DRAINING, "the service is stopping")
        deadline = time.monotonic() + grace
        while self._running and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        cut = self._running
        for task in (self._connecting, *self._pumps):
            if task:
                task.cancel()
        await self._transport.aclose()
        return cut

    def _enter(self, state: State, detail: str) -> None:
        self._state, self._detail = state, detail
        if state in (State.READY, State.FAILED):
            self._settled.set()

    async def _connect(self) -> None:
        """Asks what the upstream serves until it tells, or refuses before it has ever told."""
        pause = FIRST_PAUSE
        try:
            while not await self._ask():
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        except ModelError as error:
            self._enter(State.FAILED, str(error))

    async def _ask(self) -> bool:
        try:
            model = choose(await self._transport.models(), self._address.model)
        except Fault as fault:
            if self.info is None and not fault.passing and fault.error.code is not ErrorCode.DEADLINE_EXCEEDED:
                settings = "PARLEY_UPSTREAM_URL, PARLEY_UPSTREAM_API_KEY"
                raise ModelError(f"{self._address.url}: {fault.error.message} ({settings})") from fault
            self._put_off(fault.error.message)
            return False
        except ModelError as error:
            if self.info is None:
                raise
            self._put_off(str(error))
            return False
        self._model, self.info = model.id, info_of(model)
        if self._state is not State.DRAINING:
            self._enter(State.READY, "the upstream answers")
        return True

    def _put_off(self, cause: str) -> None:
        detail = f"{cause.rstrip('.')}; it is asked again"
        if detail != self._detail:  # once for each cause: it may be asked again for hours
            print(f"parley: {self._address.url}: {detail}", file=sys.stderr, flush=True)
        self._enter(self._state, detail)

    def _lose(self) -> None:
        """The upstream cannot be reached: nothing is sent to it until it can."""
        if self._state is State.READY:
            self._restarts += 1
            self._enter(State.RESTARTING, "The upstream cannot be reached; it is asked again")
            print("parley: the upstream cannot be reached", file=sys.stderr, flush=True)
            self._connecting = asyncio.create_task(self._connect(), name="upstream-connect")

    async def _answer(self, messages: tuple[Message, ...], sampling: Sampling) -> AsyncGenerator[Event, None]:
        ends = asyncio.get_running_loop().time() + self._patience.total
        body = await self._open(messages, sampling, ends)
        self._ids += 1
        stream = Stream(self._ids)
        pump = asyncio.create_task(self._pump(body, stream, ends))
        self._pumps.add(pump)
        pump.add_done_callback(self._pumps.discard)
        try:
            while True:
                event = await next_event(stream)
                yield event
                if not isinstance(event, Delta):
                    return
        finally:
            if not stream.ended:
                pump.cancel()

    async def _open(self, messages: tuple[Message, ...], sampling: Sampling, ends: float) -> Body:
        """Opens an answer; a model that wants the length limit under its newer name gets it so from then on."""
        field = self._limit_field  # another request may change it meanwhile
        try:
            return await self._transport.open(self._request(messages, sampling, field), ends)
        except Unreachable:
            self._lose()
            raise
        except ParleyError as error:
            if error.code is not ErrorCode.UNSUPPORTED_PARAMETER or error.param != field:
                raise
            self._limit_field = "max_completion_tokens"
            return await self._transport.open(self._request(messages, sampling, self._limit_field), ends)

    def _request(self, messages: tuple[Message, ...], sampling: Sampling, limit_field: str) -> bytes:
        """The body of a streamed chat completion (openai-openapi, `CreateChatCompletionRequest`)."""
        given = {
            name: value for name in sampling.__struct_fields__ if (value := getattr(sampling, name)) not in (None, ())
        }
        if "max_tokens" in given:
            given[limit_field] = given.pop("max_tokens")
        if given.get("top_k") == EVERY_TOKEN:
            given["top_k"] = -1  # as vLLM and others say it
        return msgspec.json.encode(
            {
                "model": self._model,
                "messages": [{"role": role, "content": content} for role, content in messages],
                "stream": True,
                "stream_options": {"include_usage": True},
                **given,
            }
        )

    async def _pump(self, body: Body, stream: Stream, ends: float) -> None:
        """Reads an answer to its end, which is always a terminal event."""
        failure = ParleyError(ErrorCode.UPSTREAM_ERROR, BROKEN)
        try:
            await self._read(body, stream, ends)
        except Fault as fault:
            failure = fault.error
        except ParleyError as error:
            failure = error
        except asyncio.CancelledError:
            failure = ParleyError(ErrorCode.DRAINING, "The service stopped before this answer was complete.")
            raise
        finally:
            stream.push(Failure.of(stream.id, failure))
            await body.aclose()

    async def _read(self, body: Body, stream: Stream, ends: float) -> None:
        reading = Reading(stream.id, self._address.key)
        try:
            with translated():
                await self._read_all(body, stream, reading, ends)
        except Fault:
            if not reading.ended:
                raise
        if not stream.ended:
            stream.push(reading.finish())

    async def _read_all(self, body: Body, stream: Stream, reading: Reading, ends: float) -> None:
        """Reads to the end of the body.

        Raises:
            TimeoutError: after a silence, which after an answer's end is a short one: some servers do not close.
        """
        now = asyncio.get_running_loop().time
        async with asyncio.timeout_at(ends) as limit:
            async for block in body:
                if stream.ended:
                    continue
                ended = reading.ended
                delta = reading.take(block)
                if delta.tokens:  # of a role or a thought its reader could only tell that the answer is alive
                    stream.push(delta)
                if not ended:  # whatever follows an end does not put it off
                    limit.reschedule(min(ends, now() + (USAGE_SECONDS if reading.ended else self._patience.silence)))
                if reading.done:
                    stream.push(reading.finish())
                    limit.reschedule(now() + LINGER_SECONDS)


async def next_event(stream: Stream) -> Event:
    """The next event, or a `Delta` without tokens after a long silence."""
    try:
        async with asyncio.timeout(NUDGE_SECONDS):
            return await stream.next()
    except TimeoutError:
        return Delta(stream.id, "", 0)
