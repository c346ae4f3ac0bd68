"""Runs the benchmark: `python -m bench`, or `make bench`. `docs/performance.md` tells what is measured and how."""

import argparse
import signal
import sys
from collections.abc import Iterator

from bench import field, options, plan, plots, report, trials
from bench.contestant import NotStarted
from bench.figures import figures
from bench.limits import Limits, limits
from bench.load import Target
from bench.machine import describe
from bench.running import Running
from bench.shapes import build
from bench.token_cost import TokenCost, measure
from bench.trials import Event, Start, Trial

BATCHES = (1, 8, 32)
LIMITED = ("pocket", "S", "M", "L")
"""Models of which every weight is read for every token, as the limit supposes."""


def main() -> None:
    """Entry point; ends with the JSON line on standard output, the rest is on standard error."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that servers are stopped, too
    chosen = options.parse()
    chosen.out.mkdir(parents=True, exist_ok=True)
    machine = describe()
    models = [model for model in chosen.models if model != options.ECHO]
    bounds = {model: _limits(model, chosen) for model in models if model in LIMITED and not chosen.url}
    costs = _token_costs(chosen)
    events = [event for model in models for event in _told(_events(model, chosen))]
    found = figures(events)
    _say(report.table(events))
    for model, bound in bounds.items():
        _say(report.limits_table(model, bound))
    _say(report.figure_table(found) + report.disturbance(events))
    line = report.json_line(machine, events, found, bounds, costs)
    with (chosen.out / "results.jsonl").open("a") as file:
        file.write(line + "\n")
    plots.write(events, chosen.out)
    print(line)


def _limits(model: str, chosen: argparse.Namespace) -> Limits:
    return limits(build(model, chosen.built), BATCHES)


def _token_costs(chosen: argparse.Namespace) -> dict[str, TokenCost]:
    if options.ECHO not in chosen.models or chosen.url:
        return {}
    try:
        costs = measure(chosen.window or 10.0, chosen.out)
    except NotStarted as error:
        _say(f"the cost of a token was not measured: {error}")
        return {}
    _say(report.token_cost_table(costs))
    return costs


def _events(model: str, chosen: argparse.Namespace) -> Iterator[Event]:
    """All turns with one model."""
    workloads = [one for one in plan.workloads(model, chosen.window) if one.name in (chosen.workloads or [one.name])]
    if chosen.url:
        for number in range(chosen.rounds):
            yield from trials.turn(model, Running(chosen.url, Target(chosen.url)), workloads, number)
        return
    entries = {key: entry for key, entry in field.entries(model).items() if key in (chosen.contestants or [key])}
    yield from trials.rounds(model, build(model, chosen.built), entries, workloads, chosen.rounds, chosen.out)


def _told(events: Iterator[Event]) -> Iterator[Event]:
    """The same, said while it happens."""
    for event in events:
        if isinstance(event, Trial):
            _say(f"{event.model}, {event.workload:10} {report.row(event.contestant, event.summary)}")
        elif isinstance(event, Start):
            turn = f"{event.model}, round {event.round + 1}: {event.contestant}"
            _say(f"{turn}, first answer after {event.seconds:.1f} s")
        else:
            _say(f"{event.model}: {event.contestant} is not there: {event.reason}")
        yield event


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
