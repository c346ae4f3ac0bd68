"""Summary: the figures of one trial, computed from its records. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from bench.percentile import percentile
from bench.record import Record

PERCENTS = (50, 95, 99)


@dataclass(frozen=True)
class Usage:
    """What a trial cost, in seconds of CPU over the whole window; None where it cannot be seen."""

    server_cpu: float | None
    api_cpu: float | None
    """Without the engine's processes; None where engine and API are one."""
    load_cpu: float
    """The load generator's own."""
    machine_cpu: float | None
    """Of everything on the machine."""
    resident: int | None
    """Bytes of the server's processes at the end of the window, shared pages counted once (PSS)."""


@dataclass(frozen=True)
class Outcome:
    """One trial as it was observed: `window` seconds of load, and what came of it."""

    records: Sequence[Record]
    window: float
    usage: Usage


@dataclass(frozen=True)
class Summary:
    """The figures of one trial. Times in milliseconds; empty lists where there was nothing to measure."""

    throughput: float
    """Generated tokens a second over all users."""
    completed: int
    unanswered: int
    """Requests without a first piece at the end; their waits so far make `first_token` a lower bound."""
    failed: int
    first_error: str | None
    first_token: list[float]
    """Time to first token: p50, p95, p99."""
    later_first_token: list[float]
    """The same for second and later turns alone."""
    inter_token: list[float]
    """Between the pieces of an answer: p50, p95, p99."""
    tokens_per_piece: float | None
    prompt_tokens: float | None
    """Mean, where the server counts."""
    api_cpu_per_token: float | None
    """Microseconds."""
    server_cpu_per_token: float | None
    """Microseconds."""
    load_share: float
    """Of one core, by the load generator."""
    other_share: float | None
    """Of one core, by what has nothing to do with the trial: where it is not near 0, times mean little."""
    resident_mb: float | None


def summarize(outcome: Outcome) -> Summary:
    """Figures of one trial; failed requests count as failures and nowhere else."""
    sound = [record for record in outcome.records if record.error is None]
    failed = [record.error for record in outcome.records if record.error is not None]
    counted = [record.prompt_tokens for record in sound if record.prompt_tokens is not None]
    weight = tokens_per_piece(sound)
    tokens = arrived(sound, weight or 1.0, outcome.window)
    usage = outcome.usage
    return Summary(
        throughput=rate(sound, tokens, outcome.window),
        completed=sum(record.done for record in sound),
        unanswered=sum(not record.pieces for record in sound),
        failed=len(failed),
        first_error=failed[0] if failed else None,
        first_token=_milliseconds([record.wait(outcome.window) for record in sound if record.turn == 0]),
        later_first_token=_milliseconds([record.wait(outcome.window) for record in sound if record.turn > 0]),
        inter_token=_milliseconds([gap for record in sound for gap in record.gaps]),
        tokens_per_piece=weight,
        prompt_tokens=fmean(counted) if counted else None,
        api_cpu_per_token=_each(usage.api_cpu, tokens),
        server_cpu_per_token=_each(usage.server_cpu, tokens),
        load_share=usage.load_cpu / outcome.window,
        other_share=other_share(usage, outcome.window),
        resident_mb=None if usage.resident is None else usage.resident / 1e6,
    )


def other_share(usage: Usage, window: float) -> float | None:
    """CPU of everything but the server and the load generator, of one core; None where the server's is not seen."""
    if usage.machine_cpu is None or usage.server_cpu is None:
        return None
    return max(0.0, usage.machine_cpu - usage.server_cpu - usage.load_cpu) / window


def tokens_per_piece(records: Sequence[Record]) -> float | None:
    """Tokens that one piece holds, over the complete answers; None when there is none."""
    complete = [record for record in records if record.done and record.pieces]
    pieces = sum(len(record.pieces) for record in complete)
    return sum(record.tokens for record in complete) / pieces if pieces else None


def arrived(records: Sequence[Record], weight: float, until: float) -> float:
    """Tokens that had arrived: those of an answer spread evenly over its pieces, `weight` a piece where it is cut."""
    total = 0.0
    for record in records:
        each = record.tokens / len(record.pieces) if record.done and record.pieces else weight
        total += each * sum(at <= until for at in record.pieces)
    return total


def rate(records: Sequence[Record], tokens: float, until: float) -> float:
    """Tokens a second up to the last arrival: exact, too, for a server that gives a whole answer every few seconds."""
    last = max((at for record in records for at in record.pieces if at <= until), default=0.0)
    return tokens / last if last else 0.0


def _milliseconds(seconds: Sequence[float]) -> list[float]:
    return [1e3 * percentile(seconds, percent) for percent in PERCENTS] if seconds else []


def _each(cpu: float | None, tokens: float) -> float | None:
    return 1e6 * cpu / tokens if cpu is not None and tokens else None
