"""Trials: contestants take turns, round after round, so that what the machine does meanwhile hits them all alike."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.contestant import Contestant, NotStarted
from bench.field import Entry
from bench.summary import Summary, summarize
from bench.workload import Workload

WARM_UP = Workload("warm-up", 4, 2.0, ((16,), (196,)), 16)
"""Before the first trial of a turn, and not shown: what is slow only once is no one's speed."""


@dataclass(frozen=True)
class Trial:
    """One contestant under one workload in one round."""

    model: str
    contestant: str
    workload: str
    round: int
    summary: Summary


@dataclass(frozen=True)
class Start:
    """How long a contestant took from the start of its process to its first answer, in seconds."""

    model: str
    contestant: str
    round: int
    seconds: float


@dataclass(frozen=True)
class Absence:
    """Why a contestant did not take part."""

    model: str
    contestant: str
    reason: str


Event = Trial | Start | Absence


def rounds(
    model: str, folder: Path, entries: dict[str, Entry], workloads: Sequence[Workload], count: int, logs: Path
) -> Iterator[Event]:
    """All rounds with one model; a contestant that cannot start is not tried again."""
    field = dict(entries)
    for number in range(count):
        for key in _rotated(list(field), number):
            log = logs / f"{model}-{key}.log"
            try:
                yield from turn(model, field[key](folder, log), workloads, number)
            except NotStarted as error:
                del field[key]
                yield Absence(model, key, str(error))


def turn(model: str, contestant: Contestant, workloads: Sequence[Workload], number: int) -> Iterator[Trial | Start]:
    """One contestant's turn: a cold start, then every workload, each after the last one's rest is gone.

    Raises:
        NotStarted: when it does not start, or not again.
    """
    try:
        yield Start(model, contestant.name, number, contestant.start())
        contestant.measure(WARM_UP)
        for workload in workloads:
            contestant.settle()
            summary = summarize(contestant.measure(workload))
            yield Trial(model, contestant.name, workload.name, number, summary)
    finally:
        contestant.stop()


def _rotated(keys: list[str], by: int) -> list[str]:
    return [keys[(index + by) % len(keys)] for index in range(len(keys))]


def typical(events: Sequence[Event]) -> list[Trial]:
    """Of the rounds of each contestant and workload, the one with the median throughput (of two, the slower).

    All contestants of a workload come together, in the order in which they first took part.
    """
    groups: dict[tuple[str, str, str], list[Trial]] = {}
    for event in events:
        if isinstance(event, Trial):
            groups.setdefault((event.model, event.workload, event.contestant), []).append(event)
    places = {(model, workload): place for place, (model, workload, _) in reversed(list(enumerate(groups)))}
    return [_middle(groups[key]) for key in sorted(groups, key=lambda key: places[key[:2]])]


def _middle(trials: list[Trial]) -> Trial:
    return sorted(trials, key=lambda trial: trial.summary.throughput)[(len(trials) - 1) // 2]
