"""The model card: models/pocket/README.md."""

import csv
import json
from pathlib import Path

from training.evaluation.evaluate import markdown
from training.knowledge_check import check_knowledge
from training.paths import KNOWLEDGE, TRAINING
from training.subject import joined, load_subjects
from training.train import load_model

_GOAL = 0.9
_CARD = TRAINING / "card.md"


def write_card(folder: Path, made: Path) -> None:
    """Fill the card's template. `made` holds the checkpoint, the loss curve and what the evaluation reported."""
    report = json.loads((made / "evaluation.json").read_text())
    below = [group for group, (met, count) in report["table"].items() if met < _GOAL * count]
    model = load_model(made / "checkpoint.pt")
    rows = list(csv.DictReader((made / "loss.csv").open()))
    shape = model.shape
    values = {
        "parameters": f"{sum(weight.numel() for weight in model.parameters()) / 1e6:.2f}",
        "width": shape.width,
        "layers": shape.layers,
        "heads": shape.heads,
        "vocabulary": f"{shape.vocabulary:,}",
        "context": f"{shape.context:,}",
        "knowledge": check_knowledge(load_subjects(KNOWLEDGE)),
        "tokens": f"{int(rows[-1]['tokens']) / 1e6:.1f}",
        "minutes": f"{float(rows[-1]['minutes']):.0f}",
        "loss": rows[-1]["loss"],
        "table": markdown(report["table"]),
        "below": joined(below) if below else "none",
        "faults": sum(report["scripts"].values()),
    }
    (folder / "README.md").write_text(_CARD.read_text().format_map(values))
