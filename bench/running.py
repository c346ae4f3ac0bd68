"""Running: a server that somebody else has started, as a contestant."""

from dataclasses import dataclass

from bench.crowd import drive
from bench.load import Target
from bench.summary import Outcome, Usage
from bench.workload import Workload


@dataclass
class Running:
    """A server at an address. What it costs its machine is not seen from here."""

    name: str
    target: Target

    def start(self) -> float:
        """Nothing to start."""
        return 0.0

    def measure(self, workload: Workload) -> Outcome:
        """Runs one workload against it."""
        watched = drive(self.target, workload, lambda: None, lambda: None)
        usage = Usage(server_cpu=None, api_cpu=None, load_cpu=watched.cpu, machine_cpu=None, resident=None)
        return Outcome(watched.records, workload.window, usage)

    def settle(self) -> None:
        """Not seen from here."""

    def stop(self) -> None:
        """It is not ours to stop."""
