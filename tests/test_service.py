"""The running service: disconnects, an engine that dies under load, a stop in order, failures at the start."""

import json
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from tests.conftest import ROOT, Served, command_line, descendants, serve

SLOW = {"messages": [{"role": "user", "content": "slow " + "word " * 400}], "stream": True}


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def running(served: Served) -> int:
    """Answers under way, as `/readyz` tells them."""
    return int(requests.get(f"{served.url}/readyz", timeout=5).json()["running"])


def stream(served: Served, body: object = SLOW) -> requests.Response:
    return requests.post(f"{served.url}/v1/chat/completions", json=body, stream=True, timeout=60)


def raw_request(served: Served, path: str, body: object) -> socket.socket:
    """A request on a socket of its own, which closes with a reset."""
    host, port = served.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    connection.sendall(head.encode() + content)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return connection


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", SLOW),
        ("/v1/chat/completions", {**SLOW, "stream": False}),
        ("/chat", {"user_input": "slow " + "word " * 400}),
        ("/chat", {"history": [{"role": "user", "content": "slow " + "word " * 400}]}),
    ],
)
def test_a_client_that_leaves_frees_its_place(echo_service: Served, path: str, body: object) -> None:
    """Fails when the engine goes on writing for somebody who is gone (R11)."""
    connections = [raw_request(echo_service, path, body) for _ in range(10)]
    until(lambda: running(echo_service) == 10)
    for connection in connections:
        connection.close()
    until(lambda: running(echo_service) == 0, seconds=5)


def test_an_engine_killed_under_load_is_told_and_comes_back() -> None:
    """Fails when a stream of a dead engine ends like a complete answer, or the service stays unready (R1, R4)."""
    with serve({"PARLEY_ENGINE": "echo"}) as served:
        ends: list[bytes] = []

        def read() -> None:
            with stream(served) as response:
                ends.append(b"".join(response.iter_content(None)).rstrip().rsplit(b"\n\n", 1)[-1])

        readers = [threading.Thread(target=read) for _ in range(32)]
        for reader in readers:
            reader.start()
        until(lambda: running(served) == 32)
        os.kill(served.engine_pid(), signal.SIGKILL)
        until(lambda: served.readyz() == 503, seconds=2)
        for reader in readers:
            reader.join(10)
        assert len(ends) == 32
        assert {json.loads(end.removeprefix(b"data: "))["error"]["code"] for end in ends} == {"engine_unavailable"}
        until(lambda: served.readyz() == 200)
        answer = requests.post(f"{served.url}/chat", json={"user_input": "back"}, timeout=10)
        assert answer.json() == "back"


def test_sigterm_lets_answers_finish_and_leaves_no_process() -> None:
    """Fails when a stop cuts running streams, drops newcomers without a word, or leaves an orphan (R15)."""
    with serve({"PARLEY_ENGINE": "echo"}) as served:
        processes = descendants(served.process.pid)
        with stream(served, {**SLOW, "messages": [{"role": "user", "content": "slow " + "word " * 40}]}) as response:
            served.process.send_signal(signal.SIGTERM)
            until(lambda: served.readyz() == 503)
            late = requests.post(f"{served.url}/chat", json={"user_input": "late"}, timeout=5)
            text = b"".join(response.iter_content(None))
        assert text.endswith(b"data: [DONE]\n\n")
        assert late.status_code == 503
        assert late.json()["error"]["code"] == "draining"
        assert "retry-after" in late.headers
        served.process.wait(15)
        assert not [pid for pid in processes if command_line(pid)]


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"PARLEY_MAX_BACTH": "4"}, ["PARLEY_MAX_BACTH", "did you mean PARLEY_MAX_BATCH"]),
        ({"PARLEY_MAX_QUEUE": "many"}, ["PARLEY_MAX_QUEUE", "many"]),
        ({"PARLEY_MODEL": "/nonexistent/model"}, ["/nonexistent/model"]),
        ({"PARLEY_MODEL": "nobody/nothing", "HF_HUB_OFFLINE": "1"}, ["nobody/nothing"]),
    ],
)
def test_a_bad_start_is_one_line_and_a_status(env: dict[str, str], words: list[str], tmp_path: Path) -> None:
    """Fails when a wrong setting gives a traceback, a crash loop or a service that never answers (R17)."""
    with serve({"PARLEY_CACHE": str(tmp_path), **env}, ready=False) as served:
        assert served.process.wait(30) == 1
        said = [line for line in served.log().splitlines() if line.startswith("parley: ")]
        assert len(said) == 1
        assert "Traceback" not in served.log()
        for word in words:
            assert word in said[0]


def test_a_model_that_breaks_while_loading_ends_the_service(tmp_path: Path) -> None:
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
