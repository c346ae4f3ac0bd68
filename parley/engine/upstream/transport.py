"""Transport: HTTP to one upstream. It tries again until the first byte of an answer, and never after it."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from http import HTTPStatus

import httpx
from msgspec import Struct

from parley.contract.errors import ErrorCode, ParleyError
from parley.engine.upstream.fault import BROKEN, LATE, STRANGE, Fault, Unreachable, from_response
from parley.engine.upstream.patience import Patience

LONGEST_LIST = 1 << 20
"""Most bytes of a list of models."""
LONGEST_ERROR = 1 << 16
"""Most bytes that are read of an error."""


class Address(Struct, frozen=True):
    """Where an upstream is, and what it is asked with."""

    url: str
    """The part before `/chat/completions`, `/v1` included where the upstream has it."""
    key: str | None = None
    model: str | None = None
    """None for the only one that the upstream lists."""


class Body:
    """The body of one answer, its first block already there. Close it, whole or not."""

    def __init__(self, first: bytes, rest: AsyncIterator[bytes], stack: AsyncExitStack) -> None:
        self._first = first
        self._rest = rest
        self._stack = stack

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._first
        async for block in self._rest:
            yield block

    async def aclose(self) -> None:
        """Gives the connection back; one whose body was not read to its end is closed, which the upstream sees."""
        await self._stack.aclose()


class Transport:
    """Pooled connections to one upstream.

    Redirects are not followed, as the key would go with them, and nothing compressed is taken, as its size is unknown.
    """

    def __init__(self, address: Address, patience: Patience) -> None:
        self._patience = patience
        headers = {"content-type": "application/json", "accept-encoding": "identity", "user-agent": "parley"}
        if address.key:
            headers["authorization"] = f"Bearer {address.key}"
        self._http = httpx.AsyncClient(
            base_url=address.url,
            headers=headers,
            follow_redirects=False,
            # Silence is watched here and not by httpx, whose clock begins anew with every byte of a response's head.
            timeout=httpx.Timeout(connect=patience.connect, write=patience.first_byte, read=None, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )

    async def aclose(self) -> None:
        """Closes every connection; what is under way on them fails."""
        await self._http.aclose()

    async def models(self) -> bytes | None:
        """The body of `GET /models`; None where the upstream has no such route.

        Raises:
            Fault: when the upstream cannot be reached or does not tell now.
        """
        with translated():
            async with (
                asyncio.timeout(2 * self._patience.connect),
                self._http.stream("GET", "models") as response,
            ):
                if response.status_code in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
                    return None
                body = await start_of(response, LONGEST_LIST)
                if response.status_code != HTTPStatus.OK:
                    raise from_response(response.status_code, response.headers, body)
                return body

    async def open(self, request: bytes, ends: float) -> Body:
        """Opens one answer.

        Args:
            request: the JSON of a streamed chat completion.
            ends: the event loop's time at which the answer is given up.

        Raises:
            ParleyError: what the last try failed with, and seconds until the next one where that is known.
        """
        loop = asyncio.get_running_loop()
        tried = 0
        while True:
            tried += 1
            try:
                return await self._try(request, ends)
            except Fault as fault:
                pause = self._patience.pause(tried, fault.error.retry_after, random.random()) if fault.passing else None
                if pause is None or loop.time() + pause >= ends:
                    raise fault.error from fault
            await asyncio.sleep(pause)

    async def _try(self, request: bytes, ends: float) -> Body:
        if self._http.is_closed:
            raise Fault(ParleyError(ErrorCode.DRAINING, "The service is stopping."), passing=False)
        latest = min(ends, asyncio.get_running_loop().time() + self._patience.first_byte)
        with translated():
            async with AsyncExitStack() as stack, asyncio.timeout_at(latest):
                exchange = self._http.stream("POST", "chat/completions", content=request)
                response = await stack.enter_async_context(exchange)
                await refuse_other_than_events(response)
                blocks = response.aiter_raw()
                if not (first := await anext(blocks, b"")):
                    raise Fault(ParleyError(ErrorCode.UPSTREAM_ERROR, BROKEN), passing=True)
                return Body(first, blocks, stack.pop_all())


async def refuse_other_than_events(response: httpx.Response) -> None:
    """Raises a `Fault` for everything but an event stream that is not compressed."""
    if response.status_code != HTTPStatus.OK:
        raise from_response(response.status_code, response.headers, await start_of(response, LONGEST_ERROR))
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "text/event-stream" or response.headers.get("content-encoding", "identity") != "identity":
        raise Fault(ParleyError(ErrorCode.UPSTREAM_ERROR, STRANGE), passing=False)


async def start_of(response: httpx.Response, most: int) -> bytes:
    """A body of this many bytes, or the start of a longer one."""
    body = b""
    async for block in response.aiter_raw():
        body += block
        if len(body) > most:
            break
    return body[:most]


@contextmanager
def translated() -> Iterator[None]:
    """httpx's and asyncio's exceptions as ours: the one place that knows them."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise Fault(Unreachable(), passing=True) from error
    except (TimeoutError, httpx.TimeoutException) as error:
        raise Fault(ParleyError(ErrorCode.DEADLINE_EXCEEDED, LATE), passing=False) from error
    except httpx.TransportError as error:
        raise Fault(ParleyError(ErrorCode.UPSTREAM_ERROR, BROKEN), passing=True) from error
