"""The commands of docs/deploy.md, run as they are written."""

import os
import re
import subprocess

import yaml

from tests.conftest import ROOT, free_port, needs

PAGE = (ROOT / "docs" / "deploy.md").read_text("utf-8")
STRICT = "set -euo pipefail\n"


def blocks(language: str) -> list[str]:
    """The page's blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_commands_do_what_the_page_says(base: str, registry: str) -> None:
    """Fails when someone who follows the page from the top gets stuck."""
    needs("kubectl")
    here = f"127.0.0.1:{free_port()}"
    script = STRICT + "\n".join(blocks("sh"))
    script = script.replace("registry.example.com", registry).replace("--publish 127.0.0.1:3000", f"--publish {here}")
    script = script.replace("curl --silent http://127.0.0.1:3000", f"curl --silent http://{here}")
    env = {**os.environ, "PUSH_OPTIONS": "--tls-verify=false"}
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "Batman" in done.stdout
    assert f"{registry}/parley@sha256:" in done.stdout
    assert "kind: Deployment" in done.stdout


def test_fragments_are_yaml() -> None:
    """Fails when a fragment of configuration cannot be pasted."""
    for block in blocks("yaml"):
        assert all(yaml.safe_load_all(block))
