"""What a run is asked to do."""

import argparse
from pathlib import Path

from bench.plan import WINDOWS

ECHO = "echo"
MODELS = [ECHO, "pocket", "S", "M", "blenderbot", "blenderbot-greedy"]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    known = ", ".join([ECHO, *WINDOWS])
    parser = argparse.ArgumentParser(prog="python -m bench", description="Chat servers under the same load.")
    parser.add_argument("--models", type=_names, default=MODELS, help=f"of {known}; echo measures what a token costs")
    parser.add_argument("--contestants", type=_names, default=[], help="keys of bench/field.py; all by default")
    parser.add_argument("--workloads", type=_names, default=[], help="such as '32 users,history'; all by default")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contestant")
    parser.add_argument("--window", type=float, help="seconds of a trial; by default each model's own")
    parser.add_argument("--url", help="measure the server that runs at this address instead")
    parser.add_argument("--out", type=Path, default=Path("artifacts/bench"), help="folder of result, plots and logs")
    parser.add_argument("--built", type=Path, default=Path("build/bench"), help="folder of the models")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.models) - {ECHO, *WINDOWS}:
        parser.error(f"no such model: {', '.join(sorted(unknown))}")
    return chosen


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
