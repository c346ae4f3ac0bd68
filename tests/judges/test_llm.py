"""`llm`, a command-line client: asked, streamed, continued."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, Served, clean_environment

MODELS = """
- model_id: parley
  model_name: echo
  api_base: {url}/v1
  api_key_name: parley
"""


@pytest.fixture
def home(echo_service: Served, tmp_path: Path) -> Path:
    """The program's settings, with this service as a model."""
    (tmp_path / "extra-openai-models.yaml").write_text(MODELS.format(url=echo_service.url))
    (tmp_path / "keys.json").write_text('{"parley": "none"}')
    return tmp_path


def llm(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llm", *arguments]
    environment = clean_environment({"LLM_USER_PATH": str(home)})
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_conversation_goes_on(home: Path) -> None:
    """Fails when a client written for OpenAI's service alone cannot read our streams, our answers, or add to them."""
    streamed = llm(home, "-m", "parley", "hello there", "-o", "max_tokens", "1")
    assert (streamed.stdout, streamed.returncode) == ("hello\n", 0), streamed.stderr
    whole = llm(home, "-c", "and again", "--no-stream")
    assert (whole.stdout, whole.returncode) == ("and again\n", 0), whole.stderr


def test_a_refusal_says_why(home: Path) -> None:
    """Fails when a user sees a status and no reason."""
    refused = llm(home, "-m", "parley", "hello", "-o", "temperature", "0.5")
    assert refused.returncode == 1
    assert "temperature" in refused.stderr
