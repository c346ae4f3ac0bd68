"""The model card: models/pocket/README.md."""

import csv
from pathlib import Path

from training.evaluation.evaluate import markdown
from training.knowledge_check import check_knowledge
from training.paths import KNOWLEDGE, TRAINING
from training.subject import load_subjects
from training.train import load_model

_CARD = TRAINING / "card.md"


def write_card(folder: Path, made: Path, table: dict[str, tuple[int, int]]) -> None:
    """Fill the card's template with what was measured. `made` holds the checkpoint and the loss curve."""
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
        "table": markdown(table),
    }
    (folder / "README.md").write_text(_CARD.read_text().format_map(values))
