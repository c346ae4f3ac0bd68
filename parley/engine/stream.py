"""Stream: the API's end of one answer. What was not read yet is kept as one `Delta`, however much it is."""

import asyncio

from parley.engine.engine import Delta, Event, TokenLogprob


class Stream:
    """Events of one answer, for one reader. `ended` is true once a terminal event came in."""

    def __init__(self, stream_id: int) -> None:
        self.id = stream_id
        self.ended = False
        self._texts: list[str] = []
        self._tokens = 0
        self._logprobs: list[TokenLogprob] = []
        self._last: Event | None = None
        self._news = asyncio.Event()

    def push(self, event: Event) -> None:
        """Takes an event in; whatever follows a terminal one is dropped."""
        if self.ended:
            return
        if isinstance(event, Delta):
            self._texts.append(event.text)
            self._tokens += event.tokens
            self._logprobs += event.logprobs
        else:
            self.ended, self._last = True, event
        self._news.set()

    def nudge(self) -> None:
        """Lets `next` return, with a `Delta` without tokens if there is nothing else."""
        self._news.set()

    async def next(self) -> Event:
        """The next event; waits for one. Never called again after a terminal event."""
        await self._news.wait()
        if self._tokens or self._last is None:
            delta = Delta(self.id, "".join(self._texts), self._tokens, self._logprobs)
            self._texts, self._tokens, self._logprobs = [], 0, []
            if self._last is None:
                self._news.clear()
            return delta
        assert self._last is not None
        return self._last
