"""How much is tried: a sample in `make test`, the long form in `make soak`."""

import os

SOAK = bool(os.environ.get("PARLEY_SOAK"))


def amount(sample: int, soak: int) -> int:
    """The number for this run."""
    return soak if SOAK else sample
