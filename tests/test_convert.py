"""Exports for the OpenVINO engine: found, chosen, made once and whole, refused in one line."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from parley.engine.export.environment import LOCK, Environment
from parley.engine.export.exporter import export
from parley.engine.launch import choose
from parley.engine.model import ModelError, ModelFolder, resolve
from parley.engine.runner import Job, Placement, Sampling
from parley.engine.runners import openvino
from parley.serving import launch_for
from parley.settings import Settings
from tests.conftest import ROOT, clean_environment, missing
from tests.models_decoder import build_llama
from tests.models_seq2seq import build_bart

CACHE = ROOT / ".cache" / "tests"
"""Where the environment of the real export stays from one run of the tests to the next."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return build_llama(tmp_path / "tiny")


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> ModelFolder:
    return resolve(str(model), tmp_path / "cache")


def place_export(home: Path) -> Path:
    home.mkdir(parents=True)
    (home / "openvino_model.xml").touch()
    return home


def pretend_environment(cache: Path, script: str) -> None:
    """A complete environment whose exporter is a shell script; its last argument is the target."""
    environment = Environment(cache)
    program = Path(environment.program("optimum-cli"))
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\nfor target; do :; done\n{script}\n")
    program.chmod(0o755)
    (program.parents[1] / "complete").touch()


WORKS = (
    "echo once >> $(dirname $0)/runs; sleep 0.3; touch $target/openvino_model.xml; echo w > $target/openvino_model.bin"
)


def convert(arguments: list[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "parley.cli", "convert", *arguments]
    environment = clean_environment(env)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)


def test_an_export_is_found_beside_the_weights_and_in_the_cache(folder: ModelFolder, model: Path) -> None:
    """Fails when an export that was made is not used, or one of another precision is."""
    assert folder.exports is not None
    assert folder.exported(None) is None
    cached = place_export(folder.exports / "openvino-int8")
    assert (folder.exported("int8"), folder.exported("float32")) == (cached, None)
    beside = place_export(model / "openvino")
    assert (folder.exported("float32"), folder.exported("bfloat16"), folder.exported(None)) == (beside,) * 3


def test_an_export_belongs_to_the_weights_that_it_was_made_from(folder: ModelFolder, model: Path) -> None:
    """Fails when a model that was trained further is served from the export of its former weights."""
    weights = model / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    assert resolve(str(model), folder.exports.parents[1]).exports != folder.exports  # type: ignore[union-attr]


def test_an_export_outlives_files_that_no_model_is_read_from(folder: ModelFolder, model: Path) -> None:
    """Fails when an export of gigabytes is made again because somebody edited a README."""
    for name in ("README.md", ".DS_Store", ".gitattributes"):
        (model / name).write_text("new")
    assert resolve(str(model), folder.exports.parents[1]).exports == folder.exports  # type: ignore[union-attr]


def test_auto_uses_an_export_and_says_how_to_get_one(folder: ModelFolder) -> None:
    """Fails when a converted model is served slowly, or nobody learns that it could be faster."""
    without = choose("auto", folder, None)
    assert (without.engine, "parley convert" in without.reason) == ("transformers", True)
    assert str(folder.path) not in without.reason
    place_export(folder.exports / "openvino")  # type: ignore[operator]
    assert choose("auto", folder, None).engine == "openvino"
    assert choose("auto", folder, None, "int8").engine == "openvino"  # which makes the export at first use
    assert choose("auto", folder, None, "float16").engine == "transformers"


def test_an_engine_that_needs_an_export_gets_one_at_first_use(model: Path, tmp_path: Path) -> None:
    """Fails when PARLEY_ENGINE=openvino wants a step done by hand first, or does it again at every start."""
    cache = tmp_path / "cache"
    pretend_environment(cache, WORKS)
    settings = Settings(model=str(model), engine="openvino", cache=cache)
    launch, folder = launch_for(settings)
    assert launch_for(settings)[0] == launch
    assert folder is not None
    assert launch.exports == str(folder.exports)
    assert folder.exported(None) == folder.exports / "openvino"  # type: ignore[operator]
    assert (Path(Environment(cache).program("runs"))).read_text() == "once\n"


def test_two_starts_together_export_once(folder: ModelFolder, tmp_path: Path) -> None:
    """Fails when two services that start together write into one another's export."""
    pretend_environment(tmp_path / "cache", WORKS)
    made: list[Path] = []
    threads = [
        threading.Thread(target=lambda: made.append(export(folder, "int8", tmp_path / "cache"))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [folder.exported("int8")] * 2
    assert Path(Environment(tmp_path / "cache").program("runs")).read_text() == "once\n"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "touch $target/openvino_model.xml; echo loading; echo 'ValueError: no such shape' >&2; exit 3",
            "no such shape",
        ),
        ("exit 3", "the command said nothing"),
        ("touch $target/openvino_model.xml", "no openvino_model.bin"),
    ],
)
def test_a_failed_export_is_one_line_and_leaves_nothing(
    model: Path, tmp_path: Path, folder: ModelFolder, script: str, words: str
) -> None:
    """Fails when half an export is served, or the cause is lost among an exporter's hundred lines."""
    cache = tmp_path / "cache"
    pretend_environment(cache, script)
    done = convert([str(model)], {"PARLEY_CACHE": str(cache)})
    said = [line for line in done.stderr.splitlines() if line.startswith("parley: ")]
    assert (done.returncode, done.stdout, len(said)) == (1, "", 1)
    assert words in said[0]
    assert folder.exported(None) is None
    assert list(folder.exports.iterdir()) == []  # type: ignore[union-attr]


def test_what_a_killed_export_left_is_cleared_away(folder: ModelFolder, tmp_path: Path) -> None:
    """Fails when every interrupted export costs the cache gigabytes for ever."""
    pretend_environment(tmp_path / "cache", WORKS)
    left_over = folder.exports / ".partial-killed"  # type: ignore[operator]
    left_over.mkdir(parents=True)
    (left_over / "openvino_model.bin").write_bytes(b"half")
    export(folder, "float32", tmp_path / "cache")
    assert [path.name for path in folder.exports.iterdir()] == ["openvino"]  # type: ignore[union-attr]


def test_an_environment_that_cannot_be_made_is_one_line(model: Path, tmp_path: Path) -> None:
    """Fails when a machine without a package index gets a traceback, or a half-made environment counts as whole."""
    env = {"PARLEY_CACHE": str(tmp_path), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    done = convert([str(model), "--dtype", "int8"], env)
    said = [line for line in done.stderr.splitlines() if line.startswith("parley: ")]
    assert (done.returncode, len(said)) == (1, 1)
    assert "installing the exporter failed: ERROR" in said[0]
    assert not Environment(tmp_path).ready


@pytest.mark.parametrize(
    ("spoil", "dtype", "words"),
    [
        (lambda model: None, "float16", "there is no float16"),
        (lambda model: (model / "tokenizer.json").unlink(), "float32", "no tokenizer.json"),
    ],
)
def test_what_the_engine_could_not_serve_is_not_exported(model: Path, tmp_path: Path, spoil, dtype, words) -> None:
    """Fails when minutes of export end in an engine that refuses the result."""
    folder = resolve(str(model), tmp_path)
    spoil(model)
    with pytest.raises(ModelError, match=words):
        export(folder, dtype, tmp_path)


def test_an_encoder_decoder_model_needs_no_export(tmp_path: Path) -> None:
    """Fails when Blenderbot's kind is exported for an engine that does not serve it."""
    folder = resolve(str(build_bart(tmp_path / "bart")), tmp_path)
    with pytest.raises(ModelError, match="seq2seq"):
        export(folder, "float32", tmp_path)


def test_progress_is_told(folder: ModelFolder, tmp_path: Path, monkeypatch, capfd) -> None:
    """Fails when a long export looks like a hang."""
    monkeypatch.setattr("parley.engine.export.steps.NEWS_SECONDS", 0.1)
    pretend_environment(tmp_path / "cache", WORKS)
    export(folder, "float32", tmp_path / "cache")
    told = capfd.readouterr().err
    assert "parley convert: tiny: exporting it in float32\n" in told
    assert "exporting it in float32: 0 s" in told


def test_the_lock_is_hashed_and_names_no_host() -> None:
    """Fails when the exporter's packages are not pinned, torch comes with its CUDA packages, or an address slips in."""
    lock = LOCK.read_text()
    packages = [line for line in lock.splitlines() if line and not line.startswith((" ", "#"))]
    assert "optimum-intel==2.2.0 \\" in packages
    assert not [line for line in packages if line.startswith(("torch", "nvidia"))]
    assert lock.count("--hash=sha256:") >= len(packages)
    assert "://" not in lock


def need_index() -> None:
    """Skips where the exporter's packages can neither be had nor are there from another run."""
    if Environment(CACHE).ready:
        return
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--quiet", "optimum-intel"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        missing("no package index can be reached")


def test_a_real_export_gives_the_models_own_answers(model: Path) -> None:
    """Fails when optimum-intel, its pins or OpenVINO change what `parley convert` makes."""
    import torch
    from transformers import AutoModelForCausalLM

    need_index()
    done = convert([str(model)], {"PARLEY_CACHE": str(CACHE)})
    assert done.returncode == 0, done.stderr
    folder = resolve(str(model), CACHE)
    assert str(folder.exported("float32")) in done.stdout
    runner = openvino.load(folder, Placement(), "test")
    prompt = list(range(10, 40))
    runner.add(Job(1, prompt, Sampling(max_tokens=16)))
    tokens: list[int] = []
    while True:
        steps = runner.step()
        tokens += [token for step in steps for token in step.tokens]
        if any(step.finish for step in steps):
            break
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = torch.tensor([prompt])
    whole = reference.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
    assert tokens == [token for token in whole[0, len(prompt) :].tolist() if token != 2]
    shutil.rmtree(folder.exports)  # type: ignore[arg-type]
