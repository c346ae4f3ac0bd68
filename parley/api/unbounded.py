"""BentoML's time limit, taken out: what takes long is bounded by the answer's own limits, within our layers.

Its timers outlive their requests, each by the whole limit and with 0.8 KB; its error has not the shape of ours; and it
lies around the layer that records requests, which takes an answer that it cuts for one whose client has left.
"""

from bentoml._internal.server.http import traffic
from starlette.types import ASGIApp, Receive, Scope, Send


class Unbounded:
    """ASGI middleware in the place of BentoML's `TimeoutMiddleware`.

    Args:
        app: what lies behind.
        timeout: the limit that is not kept, in seconds.
    """

    def __init__(self, app: ASGIApp, timeout: float) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, however long it takes."""
        await self._app(scope, receive, send)


def use_no_time_limit() -> None:
    """Takes the time limit from every service of this process. BentoML accepts neither 0 nor None as "no limit"."""
    traffic.TimeoutMiddleware = Unbounded
