"""Plots: a run's throughput and time to first token, one SVG file a workload and measure."""

from collections.abc import Sequence
from pathlib import Path

from bench import chart
from bench.trials import Event, Trial, typical


def write(events: Sequence[Event], folder: Path) -> None:
    """Writes `MODEL-WORKLOAD-throughput.svg` and `MODEL-WORKLOAD-first-token.svg` for every workload."""
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in typical(events):
        groups.setdefault((trial.model, trial.workload), []).append(trial)
    for (model, workload), group in groups.items():
        title = f"{model}, {workload}"
        stem = title.replace(", ", "-").replace(" ", "-")
        speed = {trial.contestant: trial.summary.throughput for trial in group}
        wait = {trial.contestant: trial.summary.first_token[0] for trial in group if trial.summary.first_token}
        (folder / f"{stem}-throughput.svg").write_text(chart.bars(f"{title}: throughput", "tokens/s", speed))
        (folder / f"{stem}-first-token.svg").write_text(chart.bars(f"{title}: time to first token, p50", "ms", wait))
