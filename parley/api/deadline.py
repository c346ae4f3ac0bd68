"""Deadlines of clients: what nobody waits for any more is not begun, and not gone on with."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from parley.api.sse import KEEP_ALIVE_SECONDS
from parley.contract.errors import ErrorCode, ParleyError
from parley.telemetry.record import current

OURS = "x-request-timeout"
"""Seconds that the client waits for its answer, or for the first piece of a streamed one."""

OPENAI = "x-stainless-read-timeout"
"""Seconds that OpenAI's client for Python waits for the next byte, sent with every request: for the whole answer where
it comes in one piece. In a stream every keep-alive begins them anew, so only fewer than those take are a deadline."""

HEADERS = (OURS, OPENAI)

LONGEST = 86_400.0


def deadline_of(headers: Mapping[str, str], streams: bool) -> float | None:
    """The moment, in the event loop's time, at which the client of the current request gives up; None for never.

    Args:
        headers: of the request.
        streams: whether its answer is streamed; the moment is then that of the first piece.

    Raises:
        ParleyError: what `patience` raises.
    """
    seconds = patience(headers, streams)
    if seconds is None:
        return None
    passed = time.monotonic() - current().head.arrived
    return asyncio.get_running_loop().time() + seconds - passed


def patience(headers: Mapping[str, str], streams: bool) -> float | None:
    """Seconds that the client waits from the request's arrival; None where it does not say.

    Raises:
        ParleyError: `INVALID_VALUE` for our own header with something else than a positive number of seconds.
    """
    if OURS in headers:
        seconds = _seconds(headers[OURS])
        if seconds is None:
            message = f"{OURS}: a number of seconds is expected, greater than 0 and at most {LONGEST:g}"
            raise ParleyError(ErrorCode.INVALID_VALUE, message, OURS)
        return seconds
    gap = _seconds(headers.get(OPENAI, ""))
    return None if streams and gap is not None and gap > KEEP_ALIVE_SECONDS else gap


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and 0 < seconds <= LONGEST else None


@asynccontextmanager
async def kept(deadline: float | None) -> AsyncIterator[None]:
    """Cancels what runs inside when the deadline, in the event loop's time, has passed.

    Raises:
        ParleyError: `DEADLINE_EXCEEDED`.
    """
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        message = "The answer was not there within the time that the client gave; it was given up."
        raise ParleyError(ErrorCode.DEADLINE_EXCEEDED, message) from None
