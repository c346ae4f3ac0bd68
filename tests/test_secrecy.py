"""R7: what users and keys said is in no log, metric, trace or error body, on success, refusal and crash."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import ROOT, Served, serve
from tests.scrape import only_record, records, scrape, total, until

COMPLETIONS = "/v1/chat/completions"
SECRET = "zanzibar-7431"


def plant(served: Served) -> list[requests.Response]:
    """Requests of every kind, each with the secret wherever a client can put text."""
    url = f"{served.url}{COMPLETIONS}"
    messages = [{"role": "system", "content": SECRET}, {"role": "user", "content": f"say {SECRET}"}]
    headers = {"authorization": f"Bearer {SECRET}", "cookie": SECRET, "user-agent": SECRET, "traceparent": SECRET}
    bodies: list[Any] = [
        {"messages": messages[1:], "user": SECRET, "metadata": {"note": SECRET}},
        {"messages": messages[1:], "stream": True},
        {"messages": messages},
        {"messages": messages, "model": SECRET},
        {"messages": [{"role": SECRET, "content": SECRET}]},
        {"messages": messages, "temperature": SECRET},
        {"messages": SECRET, "stop": [SECRET] * 9, "seed": SECRET},
        [SECRET],
    ]
    answers = [requests.post(url, json=body, headers=headers, timeout=20) for body in bodies]
    native = f"{served.url}/chat"
    for form in (
        {"user_input": SECRET},
        {"user_input": SECRET, "past_user_inputs": [SECRET]},
        {"history": [{"role": SECRET, "content": SECRET}]},
        {"history": [{"role": "user", "content": SECRET}]},
        {"input": SECRET},
    ):
        answers.append(requests.post(native, json=form, headers=headers, timeout=20))
    for path in (f"/{SECRET}", f"/v1/models/{SECRET}", f"/v1/models?q={SECRET}"):
        answers.append(requests.get(f"{served.url}{path}", headers=headers, timeout=20))
    for data in (f'{{"messages": "{SECRET}', f'"\\ud800{SECRET}"', f"messages={SECRET}"):
        answers.append(requests.post(url, data=data, headers={"content-type": "application/json"}, timeout=20))
    return answers


def test_r07_no_text_of_a_user_is_told_on_success_or_refusal(echo_service: Served) -> None:
    """R7. Fails when a prompt, an answer, a system prompt or a key can be read by who reads logs, metrics or errors."""
    answers = plant(echo_service)
    assert {answer.status_code for answer in answers} >= {200, 400, 404}
    told = [answer.text for answer in answers if answer.status_code >= 400]
    told += [echo_service.log(), requests.get(f"{echo_service.url}/metrics", timeout=10).text]
    assert not [text for text in told if SECRET in text]


def test_r07_no_text_of_a_user_is_told_when_the_engine_dies() -> None:
    """R7. Fails when a crash prints what it was working on."""
    with serve({"PARLEY_ENGINE": "echo"}) as served:
        answers: list[requests.Response] = []
        slow = {"messages": [{"role": "user", "content": f"slow {SECRET} " + "word " * 400}]}

        def ask() -> None:
            answers.append(requests.post(f"{served.url}{COMPLETIONS}", json=slow, timeout=60))

        thread = threading.Thread(target=ask)
        thread.start()
        with requests.post(f"{served.url}{COMPLETIONS}", json={**slow, "stream": True}, stream=True, timeout=60) as cut:
            frames = cut.iter_lines()
            next(frames)
            until(lambda: total(scrape(served), "vllm:num_requests_running") == 2)
            os.kill(served.engine_pid(), signal.SIGABRT)
            end = [frame for frame in frames if frame][-1]
        thread.join()
        until(lambda: len(records(served)) == 2)
        metrics = requests.get(f"{served.url}/metrics", timeout=10).text
        told, log = records(served), served.log()
    assert (cut.status_code, answers[0].status_code) == (200, 503)
    assert SECRET not in log + metrics + answers[0].text + end.decode()
    assert {(record["code"], record["finish_reason"]) for record in told} == {("engine_unavailable", "error")}


def test_r07_a_key_is_told_by_its_name(tmp_path: Path) -> None:
    """R7. Fails when the log cannot tell whose a request was, or tells the key itself, right or wrong."""
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[[keys]]\nname = "web"\nsha256 = "{hashlib.sha256(SECRET.encode()).hexdigest()}"\n')
    with serve({"PARLEY_ENGINE": "echo", "PARLEY_KEYS_FILE": str(keys)}) as served:
        body = {"messages": [{"role": "user", "content": "hello"}]}
        for key, status, name in ((SECRET, 200, "web"), (f"{SECRET}-wrong", 401, None)):
            headers = {"authorization": f"Bearer {key}"}
            response = requests.post(f"{served.url}{COMPLETIONS}", json=body, headers=headers, timeout=20)
            record = only_record(served, response.headers["x-request-id"])
            assert (response.status_code, record["status"], record["key"]) == (status, status, name)
        assert SECRET not in served.log()


CRASHES = {
    "on the main thread": "raise ValueError(SECRET)",
    "with a cause": "try:\n  raise KeyError(SECRET)\nexcept KeyError as e:\n  raise ValueError(SECRET) from e",
    "in a group": "raise ExceptionGroup(SECRET, [ValueError(SECRET)])",
    "on a thread": "import threading\ndef f(): raise ValueError(SECRET)\nt = threading.Thread(target=f)\nt.start()",
    "in a finalizer": "class A:\n  def __del__(self): raise ValueError(SECRET)\nA()",
    "in a log": "try:\n  raise ValueError(SECRET)\nexcept ValueError as e:\n  logging.exception('failed: %s', e)",
    "in a task": """
import asyncio
async def fail(): raise ValueError(SECRET)
async def main():
    logs.report_loop_errors()
    asyncio.create_task(fail())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
asyncio.run(main())""",
}


@pytest.mark.parametrize("crash", CRASHES)
def test_r07_exceptions_are_told_without_their_messages(crash: str) -> None:
    """R7. Fails when a library's exception is logged with its message, which quotes what it could not handle."""
    program = f"""
import logging, sys
from parley.telemetry import logs
logging.basicConfig(stream=sys.stdout)
logs.configure_logging()
SECRET = chr(122) + {SECRET[1:]!r}
{CRASHES[crash]}
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    told = ran.stdout + ran.stderr
    assert SECRET not in told
    assert "ValueError" in told


def test_r07_a_runner_that_raises_is_told_without_its_prompt() -> None:
    """R7. Fails when the engine process dies with a traceback that ends in the words of the prompt."""
    program = f"""
import socket, sys, threading
from parley.engine import loop
from parley.engine.launch import Launch
from parley.engine.runner import Job, Placement, Sampling
from parley.engine.runners.echo import load
from parley.engine.wire import Add, frame
import msgspec

def failing(launch):
    runner = load(None, launch.placement, "")
    runner.step = lambda: (_ for _ in ()).throw(ValueError(chr(122) + {SECRET[1:]!r}))
    return runner

loop.load_runner = failing
ours, theirs = socket.socketpair()
ours.sendall(frame(Add(Job(1, [1], Sampling()))))
sys.argv = ["loop", str(theirs.detach()), msgspec.json.encode(Launch("echo", "", "echo", None, Placement())).decode()]
loop.main()
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert "ValueError" in ran.stderr
    assert SECRET not in ran.stdout + ran.stderr
