"""Schemathesis on our own OpenAPI document: all phases, valid and invalid requests, null bytes."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, Served, clean_environment, serve
from tests.soak import amount

KEY = "parley-test-judge"


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The embedded model behind a key; with low limits, so that inputs at the limits are quickly made and answered."""
    keys = tmp_path_factory.mktemp("keys") / "keys.toml"
    keys.write_text(f'[[keys]]\nname = "judge"\nsha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}"\n')
    limits = {"MESSAGES": "20", "MESSAGE_CHARS": "1000", "MAX_TOKENS": "8", "LOGIT_BIAS": "10", "N": "2"}
    settings = {f"PARLEY_LIMIT_{name}": value for name, value in limits.items()}
    with serve({"PARLEY_KEYS_FILE": str(keys), **settings}) as served:
        yield served


def test_r02_schemathesis_finds_nothing(keyed: Served, tmp_path: Path) -> None:
    """Fails when the document promises what the service does not do, or some input is the service's fault."""
    report = tmp_path / "events.ndjson"
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(ROOT / "tests/judges/schemathesis.toml")),
        *("run", f"{keyed.url}/docs.json", "--url", keyed.url, "--header", f"Authorization: Bearer {KEY}"),
        *("--max-examples", str(amount(10, 1000)), "--continue-on-failure", "--no-color", "--output-truncate", "true"),
        *("--report", "ndjson", "--report-ndjson-path", str(report)),
    ]
    environment = clean_environment({"PYTHONPATH": str(ROOT), "JUDGED_MODEL": "pocket"})
    judged = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    told = "\n".join(line[:300] for line in (judged.stdout + judged.stderr).splitlines())
    print(told[-600:])
    assert judged.returncode == 0, told
