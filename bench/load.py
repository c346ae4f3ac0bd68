"""Load: users who talk to one server, all in one event loop.

At the end of the window whatever is still under way is left as it stands, and its connections are dropped.
"""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import uvloop
from pydantic import JsonValue

from bench.line import Line
from bench.record import Record
from bench.workload import Workload
from parley.client import Client
from parley.contract.errors import ParleyError


@dataclass(frozen=True)
class Target:
    """A server, and how to ask it.

    Args:
        url: its address.
        model: the name to ask for; None for the first that it lists.
        sampling: further fields of every request.
        says_done: whether its streams end in `[DONE]`; where they do not, a cut answer cannot be told from a whole one.
    """

    url: str
    model: str | None = None
    sampling: dict[str, JsonValue] = field(default_factory=dict)
    says_done: bool = True


class Load:
    """The users of one workload.

    Args:
        target: whom they ask.
        workload: what they ask.
    """

    def __init__(self, target: Target, workload: Workload) -> None:
        self._target = target
        self._workload = workload
        self._model = target.model or Client(target.url).models()[0]
        self._start = 0.0
        self._idle: list[Line] = []
        self.records: list[Record] = []

    def run(self, start: float) -> list[Record]:
        """Asks from `start` (on the monotonic clock) until the window is over."""
        self._start = start
        uvloop.new_event_loop().run_until_complete(self._window())  # not ended: what still runs is left as it stands
        return list(self.records)

    async def _window(self) -> None:
        workload = self._workload
        if workload.rate is None:
            talks = [self._talk(workload.of_user(user), due=0.0) for user in range(workload.users)]
        else:
            talks = [self._talk([number], due) for number, due in enumerate(workload.arrivals())]
        self._running = [asyncio.ensure_future(talk) for talk in talks]
        await asyncio.sleep(max(0.0, self._start + workload.window - time.monotonic()))

    async def _talk(self, conversations: Iterable[int], due: float) -> None:
        """One conversation after the other; each question is due when the answer before it is there."""
        await asyncio.sleep(max(0.0, self._start + due - time.monotonic()))
        line = self._idle.pop() if self._idle else Line(self._target.url)
        for number in conversations:
            history: list[JsonValue] = []
            for turn, text in enumerate(self._workload.turns(number)):
                history.append({"role": "user", "content": text})
                record = Record(turn, due)
                self.records.append(record)
                history.append({"role": "assistant", "content": await self._ask(line, history, record)})
                due = self._now()
                if record.error is not None:
                    await asyncio.sleep(0.05)  # a server that refuses at once is not to be flooded
                    break
        self._idle.append(line)

    async def _ask(self, line: Line, history: list[JsonValue], record: Record) -> str:
        """One request; returns the answer, so far as it came."""
        pieces: list[str] = []

        def heard(piece: str) -> None:
            record.pieces.append(self._now())
            pieces.append(piece)

        usage = None
        try:
            usage = (await line.ask(self._request(history), heard)).usage
        except (ParleyError, OSError) as error:
            if self._target.says_done or not record.pieces:
                record.error = f"{type(error).__name__}: {error}"
                return ""
        if usage is not None:
            record.prompt_tokens, record.completion_tokens = usage.prompt_tokens, usage.completion_tokens
        record.done = True
        return "".join(pieces)

    def _request(self, history: list[JsonValue]) -> dict[str, JsonValue]:
        asked: dict[str, JsonValue] = {"model": self._model, "messages": history, "stream": True}
        asked |= {"stream_options": {"include_usage": True}, "max_tokens": self._workload.answer_tokens}
        return asked | self._target.sampling

    def _now(self) -> float:
        return time.monotonic() - self._start
