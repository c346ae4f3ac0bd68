"""Failures at the start of the service."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, clean_environment, serve
from tests.models_decoder import build_llama
from tests.test_model import to_pickle


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"PARLEY_MAX_BACTH": "4"}, ["PARLEY_MAX_BACTH", "did you mean PARLEY_MAX_BATCH"]),
        ({"PARLEY_MAX_QUEUE": "many"}, ["PARLEY_MAX_QUEUE", "many"]),
        ({"PARLEY_MODEL": "/nonexistent/model"}, ["/nonexistent/model"]),
        ({"PARLEY_MODEL": "nobody/nothing", "HF_HUB_OFFLINE": "1"}, ["nobody/nothing"]),
    ],
)
def test_r17_a_bad_start_is_one_line_and_a_status(env: dict[str, str], words: list[str], tmp_path: Path) -> None:
    """Fails when a wrong setting gives a traceback, a crash loop or a service that never answers (R17)."""
    with serve({"PARLEY_CACHE": str(tmp_path), **env}, ready=False) as served:
        assert served.process.wait(30) == 1
        said = [line for line in served.log().splitlines() if line.startswith("parley: ")]
        assert len(said) == 1
        assert "Traceback" not in served.log()
        for word in words:
            assert word in said[0]


def test_r17_what_no_setting_foresees_is_one_line_too(tmp_path: Path) -> None:
    """Fails when a cache that cannot be written, or a file that a library cannot read, ends in a traceback (R17)."""
    pickled = build_llama(tmp_path / "pickled")
    to_pickle(pickled)
    unread = build_llama(tmp_path / "unread")
    (unread / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Nope"}}')
    for env in (
        {"PARLEY_MODEL": str(pickled), "PARLEY_CACHE": "/dev/null/x"},
        {"PARLEY_MODEL": str(unread), "PARLEY_CACHE": str(tmp_path / "cache")},
    ):
        with serve(env, ready=False) as served:
            assert served.process.wait(60) == 1
            said = [line for line in served.log().splitlines() if line.startswith("parley: ")]
            assert len(said) == 1, served.log()
            assert "Traceback" not in served.log()


def test_r17_a_model_that_breaks_while_loading_ends_the_service(tmp_path: Path) -> None:
    """Fails when BentoML's supervisor starts a worker over and over that can never be ready (R17)."""
    folder = tmp_path / "broken"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((ROOT / "models" / "pocket" / name).read_bytes())
    config = json.loads((ROOT / "models" / "pocket" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 64, "hidden_size": 7}))
    (folder / "model.safetensors").write_bytes((ROOT / "models" / "pocket" / "model.safetensors").read_bytes())
    (folder / "chat_template.jinja").write_bytes((ROOT / "models" / "pocket" / "chat_template.jinja").read_bytes())
    with serve({"PARLEY_MODEL": str(folder), "PARLEY_ENGINE": "transformers"}, ready=False) as served:
        assert served.process.wait(60) == 1
        assert [line for line in served.log().splitlines() if line.startswith("parley: ")]


LAYERS = """
import service
from _bentoml_impl.server.app import ServiceAppFactory
service.service.inject_config()
print(*(layer.cls.__name__ for layer in ServiceAppFactory(service.service, is_main=True).middlewares))
"""


def test_no_layer_of_bentoml_limits_the_time_of_a_request() -> None:
    """Fails when BentoML cuts long answers with an error that is not ours, and keeps a timer of minutes for each."""
    done = subprocess.run(
        [sys.executable, "-c", LAYERS],
        cwd=ROOT,
        env=clean_environment({"PARLEY_ENGINE": "echo"}),
        capture_output=True,
        text=True,
        check=False,
    )
    layers = done.stdout.split()
    assert "TimeoutMiddleware" not in layers, done.stderr
    assert layers.index("Unbounded") < layers.index("Access") < layers.index("Gate")
