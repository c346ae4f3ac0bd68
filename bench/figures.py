"""Figures: the ratios that matter, within one run, each beside what it should be. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from bench.trials import Event, Start, Trial, typical

PRECISIONS = ("fp32", "bf16", "int8")
SEQ2SEQ, SEQ2SEQ_INT8 = "Parley seq2seq fp32", "Parley seq2seq int8"
VLLM, LLAMA, PLAIN = "vLLM bf16", "llama.cpp Q8_0", "plain FastAPI"

_AGAINST_OTHERS = {
    "S": {LLAMA: 2.0, VLLM: 2.0, PLAIN: 15.0},
    "pocket": {LLAMA: 2.0, VLLM: 2.0, PLAIN: 15.0},
    "M": {VLLM: 1.1, PLAIN: 10.0},
}
_AGAINST_RAW = {"S": 0.8, "pocket": 0.8, "M": 0.95}


@dataclass(frozen=True)
class Figure:
    """One figure; `at_least` tells whether it should be at least the target, or at most."""

    name: str
    value: float
    target: float
    at_least: bool = True

    @property
    def bound(self) -> str:
        """How the value should stand to the target."""
        return ">=" if self.at_least else "<="

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.value >= self.target if self.at_least else self.value <= self.target


class Results:
    """Looks up figures of a run."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._trials = {(trial.model, trial.contestant, trial.workload): trial for trial in typical(events)}
        self._starts = [event for event in events if isinstance(event, Start)]

    def get(self, model: str, contestant: str, workload: str) -> Trial | None:
        """The typical trial; None when there was none, or when nothing was answered in it."""
        trial = self._trials.get((model, contestant, workload))
        return trial if trial and trial.summary.throughput else None

    def start(self, model: str, contestant: str) -> float | None:
        """Median seconds of its starts."""
        seconds = [start.seconds for start in self._starts if (start.model, start.contestant) == (model, contestant)]
        return median(seconds) if seconds else None


def figures(events: Sequence[Event]) -> list[Figure]:
    """All figures that this run can give."""
    results = Results(events)
    found: list[Figure] = []
    for model in _AGAINST_RAW:
        for precision in PRECISIONS:
            found += _decoder(results, model, f"Parley OpenVINO {precision}", f"raw OpenVINO {precision}")
    found += _faster(results, "blenderbot", "16 users", SEQ2SEQ_INT8, PLAIN, 6.0)
    found += _faster(results, "blenderbot", "16 users", SEQ2SEQ, PLAIN, 3.0)
    for parley in (SEQ2SEQ_INT8, SEQ2SEQ):
        found += _faster(results, "blenderbot-greedy", "32 users", parley, PLAIN, 20.0)
    return found


def _decoder(results: Results, model: str, parley: str, raw: str) -> Iterator[Figure]:
    """Everything about one precision of a decoder-only model."""
    yield from _faster(results, model, "32 users", parley, raw, _AGAINST_RAW[model])
    for other, target in _AGAINST_OTHERS[model].items():
        yield from _faster(results, model, "32 users", parley, other, target)
    if model != "M":
        yield from _sooner(results, model, parley)
        yield from _light(results, model, parley)
    yield from _warm(results, model, raw, 0.15)
    yield from _warm(results, model, parley, 0.25)


def _faster(results: Results, model: str, workload: str, one: str, other: str, target: float) -> Iterator[Figure]:
    ours, theirs = results.get(model, one, workload), results.get(model, other, workload)
    if ours and theirs:
        ratio = ours.summary.throughput / theirs.summary.throughput
        yield Figure(f"{model}, {workload}: throughput of {one} / {other}", ratio, target)


def _sooner(results: Results, model: str, parley: str) -> Iterator[Figure]:
    ours, theirs = results.get(model, parley, "32 users"), results.get(model, VLLM, "32 users")
    if ours and theirs:
        ratio = ours.summary.first_token[0] / theirs.summary.first_token[0]
        yield Figure(f"{model}, 32 users: time to first token p50 of {parley} / {VLLM}", ratio, 0.5, at_least=False)


def _warm(results: Results, model: str, contestant: str, target: float) -> Iterator[Figure]:
    trial = results.get(model, contestant, "history")
    if trial and trial.summary.later_first_token:
        ratio = trial.summary.later_first_token[0] / trial.summary.first_token[0]
        yield Figure(f"{model}, history: time to first token of later turns / cold, {contestant}", ratio, target, False)


def _light(results: Results, model: str, parley: str) -> Iterator[Figure]:
    seconds, trial = results.start(model, parley), results.get(model, parley, "32 users")
    if seconds is not None:
        yield Figure(f"{model}: first answer from cold, {parley}, s", seconds, 5.0, at_least=False)
    if trial and trial.summary.resident_mb is not None:
        resident = trial.summary.resident_mb
        yield Figure(f"{model}: resident after 32 users, {parley}, MB", resident, 600.0, at_least=False)
