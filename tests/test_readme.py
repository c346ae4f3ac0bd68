"""The README's commands, typed as they are written, against the running service."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from parley.contract.limits import Limits
from parley.settings import DEFAULT_SYSTEM_PROMPT, Settings
from tests.conftest import ROOT, Served, clean_environment, free_port, stop

README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(("language", "code"), BLOCKS, ids=[code.splitlines()[0][:40] for _, code in BLOCKS])
def test_a_block_does_what_it_says(service: Served, tmp_path: Path, language: str, code: str) -> None:
    """Fails when the README shows a command that does not work, or an answer that does not come."""
    code = code.replace("http://127.0.0.1:3000", service.url).replace(".venv/bin/", f"{BIN}/")
    program = [sys.executable, "-c"] if language == "python" else ["bash", "-euc"]
    env = clean_environment({"PARLEY_URL": service.url, "BENTOML_HOME": str(tmp_path)})
    done = subprocess.run([*program, code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert ("parley" if "bentoml build" in code else "Batman") in done.stdout


def test_the_first_answer_is_the_models(service: Served) -> None:
    """Fails when the README shows an answer that the embedded model does not give."""
    match = re.search(r"^\$ (curl .*)\n(.*)$", README, re.MULTILINE)
    assert match is not None
    command, shown = match.groups()
    done = subprocess.run(
        ["bash", "-c", command.replace("http://127.0.0.1:3000", service.url)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == shown


def test_the_bento_is_served_as_written(tmp_path: Path) -> None:
    """Fails when the shown `bentoml serve` ends at once because it would listen where everybody gets in."""
    shown = re.search(r"^\$ (\.venv/bin/bentoml serve parley:latest.*)$", README, re.MULTILINE)
    assert shown is not None
    port = free_port()
    command = shown.group(1).replace("parley:latest", "service:Parley").replace(".venv/bin/", f"{BIN}/")
    with (tmp_path / "log").open("wb") as log:
        env = clean_environment({"PARLEY_ENGINE": "echo"})
        words = [*shlex.split(command), f"--port={port}"]
        process = subprocess.Popen(words, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        Served(f"http://127.0.0.1:{port}", process, tmp_path / "log").wait_until_ready()
    finally:
        stop(process)


def test_a_result_comes_before_line_25() -> None:
    """Fails when a reader has to scroll to see what this does."""
    assert "Bruce Wayne" in "\n".join(README.splitlines()[:25])


def rows() -> list[str]:
    """The table of settings, as the code has them."""
    fields = {f"PARLEY_{name.upper()}": field for name, field in Settings.model_fields.items() if name != "limits"}
    fields |= {f"PARLEY_LIMIT_{name.upper()}": field for name, field in Limits.model_fields.items()}
    return [f"| `{name}` | {default_of(field)} | {one_line(field.description)} |" for name, field in fields.items()]


def default_of(field: FieldInfo) -> str:
    if field.default == DEFAULT_SYSTEM_PROMPT:
        return "the comic-book persona"
    value = str(field.default).replace(str(Path.home()), "~")
    return "" if value in ("None", "()", "") else f"`{value}`"


def one_line(text: str | None) -> str:
    assert text, "a setting has no docstring"
    return " ".join(text.split())


def test_every_setting_is_in_the_table() -> None:
    """Fails when a setting is added or changed without a word for those who operate the service."""
    table = "\n".join(rows())
    assert table in README, f"the table should be:\n{table}"


def test_make_targets_exist() -> None:
    """Fails when the README names a make target that is gone."""
    targets = set(re.findall(r"`make ([\w-]+)`", README))
    assert {"up", "test", "serve", "ui", "lint"} <= targets
    for target in targets:
        done = subprocess.run(
            ["make", "-n", target], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
