"""The engine alone: OpenVINO GenAI's step loop with the same questions, in one process, with no server and no text out.

What it reaches is the limit for a server that uses this engine. A token counts as arrived when `step` has returned.
"""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openvino_genai as genai

from bench.record import Record
from bench.workload import Workload
from parley.engine.model import export_folder
from parley.engine.runners.openvino.precision import PRECISIONS
from parley.engine.runners.openvino.runner import BATCHED_TOKENS

CACHE_GB = 2
MOST_AT_ONCE = 64
IDLE_SECONDS = 0.0005


@dataclass
class _Talk:
    """A user's conversations, the one after the other; `handle` is the answer under way."""

    conversations: Iterator[int]
    due: float
    turns: Iterator[tuple[int, str]] = field(default_factory=lambda: iter(()))
    history: list[dict[str, str]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    record: Record | None = None
    handle: Any = None


class RawEngine:
    """A pipeline with the same properties as Parley's.

    Args:
        folder: the model's folder, exported in the precision asked for.
        dtype: float32, bfloat16 or int8, as `PARLEY_DTYPE`.
    """

    def __init__(self, folder: Path, dtype: str) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GB
        scheduler.max_num_batched_tokens = BATCHED_TOKENS
        scheduler.max_num_seqs = MOST_AT_ONCE
        scheduler.enable_prefix_caching = True
        scheduler.dynamic_split_fuse = True
        export = str(export_folder(folder, dtype))
        self._pipeline = genai.ContinuousBatchingPipeline(export, scheduler, "CPU", dict(PRECISIONS[dtype]))
        self._tokenizer = self._pipeline.get_tokenizer()
        self._ids = itertools.count()

    def warm_up(self) -> None:
        """Makes one token."""
        self._pipeline.add_request(next(self._ids), "baba", genai.GenerationConfig(max_new_tokens=1))
        self._drop([])

    def run(self, workload: Workload, start: float) -> list[Record]:
        """Answers the questions of a workload from `start` (on the monotonic clock) to the end of its window."""

        def clock() -> float:
            return time.monotonic() - start

        records: list[Record] = []
        waiting = _talks(workload)
        active: list[_Talk] = []
        while (now := clock()) < workload.window:
            while waiting and waiting[-1].due <= now:
                active.append(waiting.pop())
            active = [talk for talk in active if talk.handle or self._ask(talk, workload, records)]
            if not active:
                time.sleep(IDLE_SECONDS)
                continue
            self._pipeline.step()
            for talk in active:
                self._collect(talk, clock())
        self._drop(active)
        return records

    def _ask(self, talk: _Talk, workload: Workload, records: list[Record]) -> bool:
        """Puts the next question; False when this user has none left."""
        turn = next(talk.turns, None)
        if turn is None:
            conversation = next(talk.conversations, None)
            if conversation is None:
                return False
            talk.history = []
            talk.turns = enumerate(workload.turns(conversation))
            turn = next(talk.turns)
        talk.history.append({"role": "user", "content": turn[1]})
        prompt = self._tokenizer.apply_chat_template(talk.history, add_generation_prompt=True)
        end = {self._tokenizer.get_eos_token_id()}
        config = genai.GenerationConfig(max_new_tokens=workload.answer_tokens, do_sample=False, stop_token_ids=end)
        talk.handle = self._pipeline.add_request(next(self._ids), prompt, config)
        talk.record = Record(turn[0], talk.due)
        records.append(talk.record)
        return True

    def _collect(self, talk: _Talk, now: float) -> None:
        """Takes the new tokens of one answer."""
        record = talk.record
        assert record is not None
        while talk.handle.can_read():
            for output in talk.handle.read().values():
                talk.tokens += output.generated_ids
                record.pieces += [now] * len(output.generated_ids)
        if talk.handle.get_status() != genai.GenerationStatus.RUNNING:
            record.done = True
            talk.history.append({"role": "assistant", "content": self._tokenizer.decode(talk.tokens)})
            talk.handle, talk.due, talk.tokens = None, now, []

    def _drop(self, active: list[_Talk]) -> None:
        """Cancels what is left, so that the next workload finds an empty engine."""
        for talk in active:
            if talk.handle:
                talk.handle.cancel()
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()


def _talks(workload: Workload) -> list[_Talk]:
    """All users, or all arrivals of the open loop, the last due first."""
    if workload.rate is None:
        return [_Talk(workload.of_user(user), 0.0) for user in range(workload.users)]
    arrivals = enumerate(workload.arrivals())
    return [_Talk(iter([number]), due) for number, due in arrivals][::-1]
