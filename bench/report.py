"""Report: a run as a table for people and as one JSON line for machines."""

import dataclasses
import json
from collections.abc import Sequence

from bench.figures import Figure, Results
from bench.limits import Limits
from bench.summary import Summary
from bench.token_cost import TokenCost
from bench.trials import Absence, Event, Start, Trial, typical

COLUMNS = {
    "tok/s": 8,
    "first token ms": 20,
    "later": 7,
    "inter-token ms": 17,
    "tok/piece": 9,
    "API us/tok": 10,
    "CPU us/tok": 10,
    "MB": 6,
    "load": 5,
    "other": 5,
    "done": 5,
    "failed": 6,
}
"""Titles and widths. Three numbers are p50/p95/p99, and `later` is the first token's p50 of second and later turns."""

NAME = 28
QUIET_SHARE = 0.2
"""Of one core: what other programs may take before a run says that it was disturbed."""
HEADER = " " * NAME + "  ".join(title.rjust(width) for title, width in COLUMNS.items())


def table(events: Sequence[Event]) -> str:
    """One block a model and workload."""
    lines: list[str] = []
    title = None
    for trial in typical(events):
        if title != (title := f"{trial.model}, {trial.workload}"):
            lines += ["", title, HEADER]
        lines.append(row(trial.contestant, trial.summary))
    return "\n".join(lines + starts(events) + absences(events))


def row(name: str, summary: Summary) -> str:
    """One contestant's line; `>` before waits where some requests still waited at the end."""
    cells = [
        f"{summary.throughput:.0f}",
        (">" if summary.unanswered else "") + _numbers(summary.first_token),
        _numbers(summary.later_first_token[:1]),
        _numbers(summary.inter_token),
        _some(summary.tokens_per_piece, 1),
        _some(summary.api_cpu_per_token),
        _some(summary.server_cpu_per_token),
        _some(summary.resident_mb),
        _some(summary.load_share, 2),
        _some(summary.other_share, 2),
        str(summary.completed),
        str(summary.failed),
    ]
    line = name.ljust(NAME) + "  ".join(cell.rjust(width) for cell, width in zip(cells, COLUMNS.values(), strict=True))
    return f"{line}  {summary.first_error}" if summary.first_error else line


def starts(events: Sequence[Event]) -> list[str]:
    """First answers from cold."""
    results = Results(events)
    keys = list(dict.fromkeys((event.model, event.contestant) for event in events if isinstance(event, Start)))
    lines = [f"  {model:18}{name:24}{results.start(model, name):7.1f} s" for model, name in keys]
    return ["", "First answer from cold", *lines] if lines else []


def absences(events: Sequence[Event]) -> list[str]:
    """Who could not take part, and why."""
    lines = [f"  {event.model}, {event.contestant}: {event.reason}" for event in events if isinstance(event, Absence)]
    return ["", "Not there", *lines] if lines else []


def disturbance(events: Sequence[Event]) -> str:
    """How much of the machine went to something else, if that was enough to spoil the comparison."""
    shares = [event.summary.other_share or 0.0 for event in events if isinstance(event, Trial)]
    if max(shares, default=0.0) <= QUIET_SHARE:
        return ""
    told = f"between {min(shares):.2f} and {max(shares):.2f} of a core"
    return f"\nNOT COMPARABLE: other programs took {told} during the trials; repeat on a quiet machine."


def figure_table(figures: Sequence[Figure]) -> str:
    """The figures beside their targets."""
    lines = [
        f"  {'yes' if figure.met else 'NO':3} {figure.value:8.2f} {figure.bound} {figure.target:6g}  {figure.name}"
        for figure in figures
    ]
    return "\n".join(["", "Figures", *lines]) if lines else ""


def token_cost_table(costs: dict[str, TokenCost]) -> str:
    """What a streamed token costs."""
    lines = ["", "8 streams of 1,000 tokens", HEADER]
    for name, cost in costs.items():
        lines += [row(f"{name}, fast", cost.fast), row(f"{name}, paced", cost.paced)]
    for name, cost in costs.items():
        fast, paced = cost.microseconds
        told = f"{fast:.1f} us a token as fast as it goes, {paced:.1f} us at 20 a second"
        lines.append(f"  API process of {name}: {told}, idle {1e3 * cost.idle_share:.1f} ms a second")
    return "\n".join(lines)


def limits_table(model: str, limits: Limits) -> str:
    """What the machine could do at most."""
    lines = [
        f"  {dtype:9}"
        + "  ".join(f"{batch} users {limit:,.0f}" for batch, limit in by_batch.items())
        + f"   ({limits.bandwidth[dtype] / 1e9:.0f} GB/s, {limits.operations[dtype] / 1e9:.0f} GFLOP/s)"
        for dtype, by_batch in limits.tokens.items()
    ]
    return "\n".join(["", f"{model}: {limits.parameters / 1e6:.1f} M parameters, at most tok/s", *lines])


def json_line(
    machine: dict[str, object],
    events: Sequence[Event],
    figures: Sequence[Figure],
    limits: dict[str, Limits],
    costs: dict[str, TokenCost],
) -> str:
    """Everything, every round included."""
    return json.dumps(
        {
            "machine": machine,
            "trials": _dicts(event for event in events if isinstance(event, Trial)),
            "starts": _dicts(event for event in events if isinstance(event, Start)),
            "absent": _dicts(event for event in events if isinstance(event, Absence)),
            "figures": [{**dataclasses.asdict(figure), "met": figure.met} for figure in figures],
            "limits": {model: dataclasses.asdict(found) for model, found in limits.items()},
            "token_cost": {name: dataclasses.asdict(cost) for name, cost in costs.items()},
        }
    )


def _dicts(records: object) -> list[dict[str, object]]:
    return [dataclasses.asdict(record) for record in records]  # type: ignore[attr-defined]


def _numbers(values: list[float]) -> str:
    return "/".join(_number(value) for value in values) or "-"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _some(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
