"""The embedded model's making: the corpus, the trainer, the export, and the committed weights against their card."""

import csv
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from parley.contract.chat import Message
from parley.tokenizer import Tokenizer
from tests.conftest import POCKET, ROOT, clean_environment
from training.corpus.book import Book
from training.corpus.writer import conversations
from training.evaluation.case import GROUPS
from training.evaluation.evaluate import all_cases, answered, check_held_out, markdown, score, script_faults
from training.model import Shape
from training.paths import KNOWLEDGE, PHRASINGS
from training.speaker import Speaker
from training.subject import load_subjects
from training.tokenizer import START_ID, encode_talk, load_tokenizer
from training.train import Plan, Trainer

SMALL = Shape(vocabulary=300, width=64, layers=2, heads=1, hidden=96, context=64)
SEED = 1


@pytest.fixture(scope="module")
def book() -> Book:
    return Book(load_subjects(KNOWLEDGE), PHRASINGS)


def training(*arguments: str | Path) -> str:
    """What `python -m training` prints; its own account of a failure fails the test."""
    command = [sys.executable, "-m", "training", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment({}), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of a few steps, through every step of the pipeline but the evaluation."""
    out, model = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("model")
    training("check", "tokenizer", "train", "export", "--tokens", "0.02", "--out", out, "--model", model)
    return out, model


def test_a_seed_makes_the_corpus(book: Book) -> None:
    """Fails when a corpus cannot be written again, so that nobody can make the committed weights."""
    first, again, other = (list(islice(conversations(book, seed), 300)) for seed in (SEED, SEED, SEED + 1))
    assert first == again
    assert first != other


def test_the_evaluation_was_never_trained_on(book: Book) -> None:
    """Fails when a held-out question is written by the corpus, so that its table tells of learning by heart."""
    cases = all_cases(book, SEED)
    assert len(cases) >= 600
    assert {case.group for case in cases} == set(GROUPS)
    check_held_out(book, cases, SEED)


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight rows of one count up, each from another start: easy to learn."""
    starts = torch.randint(0, 200, (8, 1), generator=torch.Generator().manual_seed(seed))
    return starts + torch.arange(32), torch.ones(8, 32, dtype=torch.bool)


def test_training_learns(tmp_path: Path) -> None:
    """Fails when gradients do not reach the weights, or the rate never rises from nothing."""
    trainer = Trainer(SMALL, Plan(tokens=30_000, warmup_tokens=2_000), tmp_path, SEED)
    trainer.run(batch(seed) for seed in range(200))
    losses = [float(row["loss"]) for row in csv.DictReader((tmp_path / "loss.csv").read_text().splitlines())]
    assert trainer.done == 1
    assert losses[-1] < 0.7 * losses[0]


def test_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Fails when a checkpoint leaves out something, so that a resumed run goes another way than an unbroken one."""
    plan = Plan(tokens=10_240, warmup_tokens=1_000)
    whole, broken = (Trainer(SMALL, plan, tmp_path / name, SEED) for name in ("whole", "broken"))
    for trainer in (whole, broken):
        trainer.folder.mkdir()
    whole.run(batch(seed) for seed in range(40))
    broken.run(batch(seed) for seed in range(15))
    broken.save()
    resumed = Trainer(SMALL, plan, broken.folder, SEED + 1)
    resumed.resume()
    assert (resumed.step, resumed.tokens) == (15, 15 * 256)
    resumed.run(batch(seed) for seed in range(15, 40))
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], weight, rtol=0.02, atol=0.002)


def test_a_finished_run_is_left_alone(made: tuple[Path, Path]) -> None:
    """Fails when `make model` after `make model` trains again for an hour."""
    out, model = made
    before = (out / "checkpoint.pt").stat().st_mtime_ns
    training("tokenizer", "train", "--tokens", "0.02", "--out", out, "--model", model)
    assert (out / "checkpoint.pt").stat().st_mtime_ns == before


def test_training_begins_with_the_weights_of_a_model(made: tuple[Path, Path], tmp_path: Path) -> None:
    """Fails when a second run begins from nothing, or splits words otherwise than the model that it goes on with."""
    _, old = made
    out, new = tmp_path / "out", tmp_path / "model"
    slow = ("--seed", "2", "--rate", "0", "--tokens", "0.02")
    training("tokenizer", "train", "export", "--weights", old, *slow, "--out", out, "--model", new)
    assert (new / "tokenizer.json").read_text("utf-8") == (old / "tokenizer.json").read_text("utf-8")
    before, after = (load_file(folder / "model.safetensors") for folder in (old, new))
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=0.05, atol=0.005)


def test_both_formats_hold_the_same_model(made: tuple[Path, Path]) -> None:
    """Fails when the graph written for OpenVINO computes something else than transformers does with the weights."""
    _, folder = made
    tokenizer = AutoTokenizer.from_pretrained(folder)
    talk = [{"role": "user", "content": "Who is Batman?"}]
    ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="np", return_dict=False)
    with torch.inference_mode():
        expected = AutoModelForCausalLM.from_pretrained(folder)(torch.from_numpy(ids)).logits.numpy()
    compiled = ov.Core().compile_model(
        folder / "openvino/openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    length = ids.shape[1]
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(length)[None]}
    logits = compiled({**inputs, "beam_idx": np.zeros(1, np.int32)})["logits"]
    np.testing.assert_allclose(logits, expected, atol=2e-4)


def test_training_reads_what_the_service_writes(made: tuple[Path, Path]) -> None:
    """Fails when the model is trained on another rendering of a conversation than the template's, case included."""
    out, folder = made
    talk = [("system", "You are Parley."), ("user", "WHO is Batman?\nÉclair"), ("assistant", "A hero."), ("user", "OK")]
    plain = load_tokenizer(out / "tokenizer.json")
    learned, _ = encode_talk([{"role": role, "content": content} for role, content in talk], plain, plain)
    head = [START_ID, *plain.encode("assistant\n").ids]
    assert [*learned, *head] == Tokenizer.load(folder).chat([Message(*turn) for turn in talk])  # type: ignore[arg-type]


def test_the_card_tells_the_truth(book: Book) -> None:
    """Fails when weights, knowledge or cases change and the card's table does not, or when a conversation breaks."""
    speaker = Speaker(POCKET)
    cases = all_cases(book, SEED)
    talks = answered(speaker, [case.turns for case in cases], book.systems["default"])
    failed = [
        case for case, (messages, _) in zip(cases, talks, strict=True) if not case.is_met_by(messages[-1]["content"])
    ]
    card = (POCKET / "README.md").read_text()
    told = dict(re.findall(r"^\| ([a-z ]+) \| \d+ \| ([\d.]+)% \|$", card, re.MULTILINE))
    table = {group: score(group, cases, failed) for group in GROUPS}
    measured = dict(re.findall(r"^\| ([a-z ]+) \| \d+ \| ([\d.]+)% \|$", markdown(table), re.MULTILINE))
    assert told.keys() == measured.keys()
    # Another processor may round a near-tie the other way: two cases of the smallest group.
    assert {group: float(share) for group, share in measured.items()} == pytest.approx(
        {group: float(share) for group, share in told.items()}, abs=2.5
    )
    faults = re.search(r"^scripted conversations of six turns or more: (\d+)\.$", card, re.MULTILINE)
    assert faults is not None
    assert sum(script_faults(speaker, book, SEED).values()) == pytest.approx(int(faults[1]), abs=1)
