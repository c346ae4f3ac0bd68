"""Load: users who talk to one server through `parley.client`, a thread each, in a process of their own.

At the end of the window whatever is still under way is left as it stands, and its connections are dropped.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from bench.record import Record
from bench.workload import Workload
from parley.client import Client
from parley.contract.chat import Message
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
    """The users of one process: every `step`th, from `first` on.

    Args:
        target: whom they ask.
        workload: what they ask.
        first: the first user, or in the open loop the first arrival, of this process.
        step: how many processes there are.
    """

    def __init__(self, target: Target, workload: Workload, first: int, step: int) -> None:
        self._target = target
        self._workload = workload
        self._first = first
        self._step = step
        self._client = Client(target.url, model=target.model)
        self._start = 0.0
        self.records: list[Record] = []

    def run(self, start: float) -> list[Record]:
        """Asks from `start` (on the monotonic clock) until the window is over."""
        self._start = start
        for thread in self._threads():
            thread.start()
        time.sleep(max(0.0, start + self._workload.window - time.monotonic()))
        return list(self.records)

    def _threads(self) -> list[threading.Thread]:
        work: Sequence[Callable[[], None]]
        if self._workload.rate is None:
            work = [self._closed(user) for user in range(self._first, self._workload.users, self._step)]
        else:
            times = list(enumerate(self._workload.arrivals()))
            work = [self._open(number, due) for number, due in times[self._first :: self._step]]
        return [threading.Thread(target=task, daemon=True) for task in work]

    def _closed(self, user: int) -> Callable[[], None]:
        return lambda: self._talk(self._workload.of_user(user), due=0.0)

    def _open(self, number: int, due: float) -> Callable[[], None]:
        return lambda: self._talk([number], due)

    def _talk(self, conversations: Iterable[int], due: float) -> None:
        """One conversation after the other; each question is due when the answer before it is there."""
        time.sleep(max(0.0, self._start + due - time.monotonic()))
        for number in conversations:
            history: list[Message] = []
            for turn, text in enumerate(self._workload.turns(number)):
                history.append(Message("user", text))
                record = Record(turn, due)
                self.records.append(record)
                history.append(Message("assistant", self._ask(history, record)))
                due = self._now()
                if record.error is not None:
                    time.sleep(0.05)  # a server that refuses at once is not to be flooded
                    break

    def _ask(self, history: list[Message], record: Record) -> str:
        """One request; returns the answer, so far as it came."""
        limit: JsonValue = self._workload.answer_tokens
        text: list[str] = []
        try:
            with self._client.stream(history, max_tokens=limit, **self._target.sampling) as answer:
                for piece in answer:
                    record.pieces.append(self._now())
                    text.append(piece)
                usage = answer.reply.usage
        except ParleyError as error:
            if self._target.says_done or not record.pieces:
                record.error = f"{error.code}: {error.message}"
                return ""
            usage = None
        if usage is not None:
            record.prompt_tokens, record.completion_tokens = usage.prompt_tokens, usage.completion_tokens
        record.done = True
        return "".join(text)

    def _now(self) -> float:
        return time.monotonic() - self._start
