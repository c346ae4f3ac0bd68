"""Make the model: knowledge check, tokenizer, training, evaluation, export. `python -m training --help`.

The corpus is a stream made from the seed while training runs, so it needs no step and no disk of its own.
Every step skips what an earlier run has finished, and training goes on from its last checkpoint; `--fresh` starts over.
"""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

from training.batches import Batches
from training.card import write_card
from training.corpus.book import Book
from training.evaluation.evaluate import evaluate
from training.export import export
from training.knowledge_check import check_knowledge
from training.model import Shape
from training.paths import KNOWLEDGE, MODEL, OUT, PHRASINGS
from training.phrasing_check import check_phrasings
from training.subject import load_subjects
from training.tokenizer import train_tokenizer
from training.train import Plan, Trainer


def main() -> None:
    """Run the steps that are asked for, in their order."""
    arguments = _arguments()
    if arguments.fresh:
        shutil.rmtree(arguments.out, ignore_errors=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for step in arguments.steps or STEPS:
        print(f"== {step}", flush=True)
        STEPS[step](arguments)


def _check(_: argparse.Namespace) -> None:
    print(check_knowledge(load_subjects(KNOWLEDGE)))
    print(check_phrasings(PHRASINGS))


def _tokenizer(arguments: argparse.Namespace) -> None:
    path = arguments.out / "tokenizer.json"
    if arguments.weights:
        shutil.copy(arguments.weights / "tokenizer.json", path)
    elif not path.exists():
        train_tokenizer(_book(), Shape().vocabulary, arguments.seed).save(str(path))


def _train(arguments: argparse.Namespace) -> None:
    plan = Plan(minutes=arguments.minutes, tokens=int(arguments.tokens * 1e6), rate=arguments.rate)
    trainer = Trainer(Shape(), plan, arguments.out, arguments.seed)
    if arguments.weights:
        trainer.begin_with(arguments.weights / "model.safetensors")
    trainer.resume()
    if trainer.done < 1:
        seed = arguments.seed + 1 + trainer.step
        made_of = _book(), arguments.out / "tokenizer.json", plan.batch_tokens, Shape().context, seed
        trainer.run(Batches(*made_of).ahead())


def _export(arguments: argparse.Namespace) -> None:
    export(arguments.out, arguments.model)


def _evaluate(arguments: argparse.Namespace) -> None:
    evaluate(_book(), arguments.model, arguments.out / "evaluation.json", arguments.seed)
    write_card(arguments.model, arguments.out)


def _book() -> Book:
    return Book(load_subjects(KNOWLEDGE), PHRASINGS)


STEPS: dict[str, Callable[[argparse.Namespace], None]] = {
    "check": _check,
    "tokenizer": _tokenizer,
    "train": _train,
    "export": _export,
    "evaluate": _evaluate,
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("steps", nargs="*", choices=[*STEPS, []], help="what to do (default: everything)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=Plan.minutes, help="training time at most")
    parser.add_argument("--tokens", type=float, default=Plan.tokens / 1e6, help="training tokens at most, in millions")
    parser.add_argument("--weights", type=Path, help="a model folder whose weights and tokenizer to begin with")
    parser.add_argument("--rate", type=float, default=Plan.rate, help="of the learning rates, for such a beginning")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of checkpoints, loss curve and evaluation")
    parser.add_argument("--model", type=Path, default=MODEL, help="folder that the finished model is written to")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs have made")
    return parser.parse_args()


if __name__ == "__main__":
    main()
