"""What one streamed token costs the API process: 8 streams of 1,000 tokens, beside plain FastAPI under the same load.

Parley runs its echo engine, which says a word a step as fast as it is read; plain FastAPI streams ready words from its
own event loop. A token is a word here, whatever the servers count.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from bench import field
from bench.record import Record
from bench.server import Server
from bench.summary import Outcome, Summary, summarize
from bench.workload import Workload

WORDS = 1000


@dataclass(frozen=True)
class TokenCost:
    """Microseconds of CPU for one streamed token, of Parley's API process and of plain FastAPI; and their trials."""

    parley: float
    plain: float
    trials: dict[str, Summary]


def measure(window: float, logs: Path) -> TokenCost:
    """Starts both in turn and measures each; raises `NotStarted` when one does not start."""
    workload = Workload("8 streams", 8, window, ((WORDS,),), WORDS)
    parley = _trial(field.echo(logs / "echo.log"), workload)
    plain = _trial(field.typist(logs / "typist.log"), workload)
    trials = {"Parley echo": parley, "plain FastAPI": plain}
    return TokenCost(parley.api_cpu_per_token or 0.0, plain.server_cpu_per_token or 0.0, trials)


def in_words(outcome: Outcome) -> Outcome:
    """The same with complete answers counted in words: the echo engine's own tokens are bytes."""
    return replace(outcome, records=[_in_words(record) for record in outcome.records])


def _in_words(record: Record) -> Record:
    return replace(record, completion_tokens=WORDS) if record.done else record


def _trial(server: Server, workload: Workload) -> Summary:
    try:
        server.start()
        return summarize(in_words(server.measure(workload)))
    finally:
        server.stop()
