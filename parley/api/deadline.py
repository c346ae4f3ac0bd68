"""Deadlines of clients: what nobody waits for any more is not begun, and not gone on with."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from parley.contract.errors import ErrorCode, ParleyError

OURS = "x-request-timeout"
"""Seconds that the client waits for its answer, or for the first piece of a streamed one."""

OPENAI = "x-stainless-read-timeout"
"""The same, as OpenAI's client for Python sends it with every request."""

HEADERS = (OURS, OPENAI)

LONGEST = 86_400.0


def patience(headers: Mapping[str, str]) -> float | None:
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
    return _seconds(headers.get(OPENAI, ""))


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


def loop_time(moment: float) -> float:
    """A moment of `time.monotonic()` in the running event loop's time."""
    return asyncio.get_running_loop().time() + moment - time.monotonic()
