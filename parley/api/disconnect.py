"""Clients that leave: what nobody reads any more is not gone on with."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from parley.contract.errors import ErrorCode, ParleyError

T = TypeVar("T")


async def unless_disconnected(receive: Callable[[], Awaitable[Any]], work: Coroutine[Any, Any, T]) -> T:
    """Runs `work`, and cancels it when the client closes the connection.

    Args:
        receive: the request's ASGI `receive`, its body already read.
        work: what makes the answer.

    Raises:
        ParleyError: `CLIENT_CLOSED_REQUEST` when the client left first; whatever `work` raises.
    """
    working, leaving = asyncio.create_task(work), asyncio.create_task(left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ParleyError(ErrorCode.CLIENT_CLOSED_REQUEST, "The client left.")
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def left(receive: Callable[[], Awaitable[Any]]) -> None:
    """Waits until the client has left.

    Args:
        receive: the request's ASGI `receive`, its body already read.
    """
    while (await receive())["type"] != "http.disconnect":
        pass
