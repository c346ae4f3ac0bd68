"""Where the pipeline reads and writes."""

from pathlib import Path

TRAINING = Path(__file__).parent
KNOWLEDGE = TRAINING / "knowledge"
PHRASINGS = TRAINING / "phrasings"
HELD_OUT = TRAINING / "held_out"
OUT = TRAINING / "out"
MODEL = TRAINING.parent / "models" / "pocket"
