"""What one streamed token costs the API process: 8 streams of 1,000 tokens, beside plain FastAPI under the same load.

Parley runs its echo engine; plain FastAPI streams ready words from its own event loop. A token is a word here, whatever
the servers count. Twice: as fast as the words are read, when many share a wake-up and a frame; and at 20 words a second
and stream, when none do. At that pace what a server does when idle weighs in, so that is measured, too.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from bench import field
from bench.record import Record
from bench.server import Server
from bench.summary import Outcome, Summary, summarize
from bench.workload import Workload

WORDS = 1000
STREAMS = 8
IDLE_SECONDS = 3.0


@dataclass(frozen=True)
class TokenCost:
    """One server's figures. `idle_share` is the CPU of its API processes while nobody asks, of one core."""

    fast: Summary
    paced: Summary
    idle_share: float

    @property
    def microseconds(self) -> tuple[float, float]:
        """CPU of the API process for one token, as fast as they come and at 20 a second."""
        return _cost(self.fast), _cost(self.paced)


def measure(window: float, logs: Path) -> dict[str, TokenCost]:
    """Parley and plain FastAPI in turn; raises `NotStarted` when one does not start."""
    servers = [field.echo(logs / "echo.log"), field.typist(logs / "typist.log")]
    return {server.name: _of(server, window) for server in servers}


def in_words(outcome: Outcome) -> Outcome:
    """The same with complete answers counted in words: the echo engine's own tokens are bytes."""
    return replace(outcome, records=[_in_words(record) for record in outcome.records])


def _in_words(record: Record) -> Record:
    return replace(record, completion_tokens=WORDS) if record.done else record


def _of(server: Server, window: float) -> TokenCost:
    fast = Workload("8 streams", STREAMS, window, ((WORDS,),), WORDS)
    paced = replace(fast, opening="slow ")
    try:
        server.start()
        idle = server.idle_share(IDLE_SECONDS)
        summaries = []
        for workload in (fast, paced):
            server.settle()
            summaries.append(summarize(in_words(server.measure(workload))))
    finally:
        server.stop()
    return TokenCost(summaries[0], summaries[1], idle)


def _cost(summary: Summary) -> float:
    return summary.api_cpu_per_token or summary.server_cpu_per_token or 0.0
