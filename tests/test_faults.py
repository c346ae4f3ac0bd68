"""Faults under load: connections cut, processes killed and frozen, a stop in the middle of answers.

Each test prints its figures (`pytest -s`); `make soak` runs the long forms. The promises are in docs/reliability.md.
"""

import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest
import requests

from parley.api.body import BODY_SECONDS
from tests.conftest import Served, command_line, descendants, serve
from tests.faulty import reset
from tests.readers import End, read, readers, running, unread, worker_pid
from tests.scrape import until
from tests.scripted import Say, Script, scripted
from tests.soak import amount

CROWD = 32
LONG = "slow " + "word " * 400
"""Twenty seconds of answer."""


@pytest.fixture(scope="module")
def echo() -> Iterator[Served]:
    """A service of this module's own, to be broken."""
    with serve({"PARLEY_ENGINE": "echo"}) as served:
        yield served


def cutting(served: Served, rng: random.Random) -> Script:
    """A way to the service that breaks off after a random number of bytes, politely or with a reset."""
    host, port = urlsplit(served.url).netloc.split(":")

    def script(request: bytes, say: Say) -> None:
        left = rng.randrange(4000)
        with socket.create_connection((host, int(port))) as service:
            service.sendall(request.replace(b"Connection: keep-alive", b"Connection: close"))
            while left > 0 and (data := service.recv(1024)):
                say(data[:left])
                left -= len(data)
        if left <= 0 and rng.random() < 0.5:
            reset(say)

    return script


def test_r01_no_answer_that_was_cut_on_its_way_is_taken_for_whole(echo: Served) -> None:
    """R1. Fails when a stream that ends early, at whatever byte, is a complete answer to our client."""
    text = " ".join(f"word-{index}" for index in range(60))
    count = amount(60, 500)
    with scripted(cutting(echo, random.Random(1))) as cutter, ThreadPoolExecutor(8) as pool:
        ends = list(pool.map(lambda _: read(cutter.url, text), range(count)))
    cut = [end for end in ends if end.code]
    print(f"\nR1: {count} streams, {len(cut)} cut on their way, all told; {count - len(cut)} whole")
    assert len(cut) > count / 4
    assert {end.code for end in cut} <= {"upstream_error", "engine_unavailable"}
    assert {end.text for end in ends if not end.code} == {text}


def test_r01_r04_a_killed_engine_is_told_to_all_and_comes_back() -> None:
    """R1, R4. Fails when a reader of a dead engine waits, takes half an answer, or the service stays away."""
    rng = random.Random(4)
    figures: list[tuple[float, float, float]] = []
    for _ in range(amount(1, 13)):  # a new service now and then: pauses between restarts double each time
        with serve({"PARLEY_ENGINE": "echo"}) as served:
            figures += [kill_engine(served, rng.uniform(0, 0.5)) for _ in range(amount(2, 4))]
    told, unready, back = (max(column) for column in zip(*figures, strict=True))
    print(
        f"\nR4: {len(figures)} kills under {CROWD} streams: told in {told:.2f} s, "
        f"not ready in {unready:.2f} s, ready again in {back:.1f} s"
    )


def kill_engine(served: Served, after: float) -> tuple[float, float, float]:
    """Seconds from the kill until the last reader was told, until `/readyz` said so, and until it was ready again."""
    with readers(served, CROWD, LONG) as ends:
        time.sleep(after)
        killed = time.monotonic()
        os.kill(served.engine_pid(), signal.SIGKILL)
        until(lambda: served.readyz() == 503, seconds=5)
        unready = time.monotonic()
        all_told(ends_of := [end.result(10) for end in ends], "engine_unavailable")
    until(lambda: served.readyz() == 200, seconds=30)
    assert read(served.url, "still here").text == "still here"
    return max(end.at for end in ends_of) - killed, unready - killed, time.monotonic() - killed


def all_told(ends: list[End], code: str) -> None:
    """Every reader knows that its answer is not whole, and why."""
    assert [end.code for end in ends] == [code] * CROWD
    assert all(end.text != LONG for end in ends)


def test_r01_a_killed_api_process_is_a_broken_connection(echo: Served) -> None:
    """R1. Fails when readers of a dead process take what they have for the whole, or nobody starts it again."""
    engine = echo.engine_pid()
    with readers(echo, CROWD, LONG) as ends:
        killed = time.monotonic()
        os.kill(worker_pid(echo), signal.SIGKILL)
        all_told([end.result(10) for end in ends], "upstream_error")
    until(lambda: echo.readyz() == 200, seconds=60)
    print(f"\nR1: API process killed under {CROWD} streams: all told, ready again in {time.monotonic() - killed:.1f} s")
    assert not command_line(engine), "the engine of the killed process is still there"
    assert read(echo.url, "still here").text == "still here"


def test_r16_a_frozen_engine_is_noticed_and_replaced(echo: Served) -> None:
    """R16. Fails when a stopped process leaves its clients waiting and the service ready."""
    engine = echo.engine_pid()
    with readers(echo, CROWD, LONG) as ends:
        frozen = time.monotonic()
        os.kill(engine, signal.SIGSTOP)
        until(lambda: echo.readyz() == 503)
        unready = time.monotonic() - frozen
        all_told([end.result(20) for end in ends], "engine_unavailable")
    until(lambda: echo.readyz() == 200, seconds=60)
    print(
        f"\nR16: frozen under {CROWD} streams: not ready in {unready:.1f} s, back in {time.monotonic() - frozen:.1f} s"
    )
    assert not command_line(engine)


def test_r04_r15_r16_readyz_says_why_it_is_not_ready() -> None:
    """R4, R15, R16. Fails when an operator sees a 503 and not whether to wait, to look or to do nothing."""
    told: dict[str, str] = {}
    with serve({"PARLEY_ENGINE": "echo"}, ready=False) as served:
        until(lambda: why(served, told) == "ready", seconds=60)
        os.kill(served.engine_pid(), signal.SIGKILL)
        until(lambda: why(served, told) == "restarting")
        until(lambda: why(served, told) == "ready")
        os.kill(served.engine_pid(), signal.SIGSTOP)
        until(lambda: why(served, told) == "restarting")
        until(lambda: why(served, told) == "ready", seconds=60)
        with readers(served, CROWD, "slow " + "word " * 20):
            served.process.send_signal(signal.SIGTERM)
            until(lambda: why(served, told) == "draining")
    assert told == {
        "loading 503": "echo is being loaded",
        "ready 200": "echo on echo",
        "restarting 503": "the engine process ended and is being started again",
        "draining 503": "the service is stopping",
    }


def why(served: Served, told: dict[str, str]) -> str:
    """The state that `/readyz` tells; notes its newest reason by state and status."""
    try:
        answer = requests.get(f"{served.url}/readyz", timeout=5)
    except requests.RequestException:
        return ""
    body = answer.json()
    told[f"{body['status']} {answer.status_code}"] = body["detail"]
    return str(body["status"])


def tell_all(served: Served) -> None:
    """Tells every process to stop, as systemd does it; the supervisor then tells its worker once more."""
    for pid in (served.process.pid, *descendants(served.process.pid)):
        os.kill(pid, signal.SIGTERM)


@pytest.mark.parametrize("told", ["the supervisor", "all of them"])
def test_r15_a_stop_lets_all_answers_finish(told: str) -> None:
    """R15. Fails when SIGTERM cuts answers that had time, lets newcomers in, or leaves a process behind."""
    text = "slow " + "word " * 40
    with serve({"PARLEY_ENGINE": "echo"}) as served:
        processes = descendants(served.process.pid)
        with readers(served, CROWD, text) as ends:
            if told == "the supervisor":
                served.process.send_signal(signal.SIGTERM)
            else:
                tell_all(served)
            until(lambda: served.readyz() == 503)
            late = requests.post(f"{served.url}/chat", json={"user_input": "late"}, timeout=5)
            finished = [end.result(20) for end in ends]
        last = max(end.at for end in finished)
        served.process.wait(20)
        print(f"\nR15: SIGTERM under {CROWD} streams: all whole, exit {time.monotonic() - last:.1f} s after the last")
    assert [(end.text, end.code) for end in finished] == [(text, None)] * CROWD
    assert (late.status_code, late.json()["error"]["code"]) == (503, "draining")
    assert int(late.headers["retry-after"]) > 0
    assert late.headers["connection"] == "close"  # so that the retry finds another replica
    assert not [pid for pid in processes if command_line(pid)]


def test_r15_who_asks_twice_does_not_wait_for_the_grace() -> None:
    """R15. Fails when a second signal does nothing, or cuts answers without a word."""
    with serve({"PARLEY_ENGINE": "echo", "PARLEY_DRAIN_GRACE": "600"}) as served:
        with readers(served, CROWD, LONG) as ends:
            for _ in range(2):
                tell_all(served)
                time.sleep(2)  # more than what counts as the same stop, told twice
            all_told([end.result(20) for end in ends], "draining")
        served.process.wait(30)


def test_r15_what_outlasts_the_grace_is_told() -> None:
    """R15. Fails when an answer that the end of the grace cuts looks whole, or the stop waits for it."""
    grace = 1.0
    with serve({"PARLEY_ENGINE": "echo", "PARLEY_DRAIN_GRACE": str(grace)}) as served:
        processes = descendants(served.process.pid)
        with readers(served, CROWD, LONG) as ends:
            began = time.monotonic()
            served.process.send_signal(signal.SIGTERM)
            all_told([end.result(20) for end in ends], "draining")
        served.process.wait(30)
        ended = time.monotonic() - began
        print(f"\nR15: {CROWD} streams beyond a grace of {grace:g} s: all told, exit after {ended:.1f} s")
    assert not [pid for pid in processes if command_line(pid)]


def test_r15_who_stalls_does_not_hold_the_stop() -> None:
    """R15. Fails when the end waits for a reader that takes nothing, or for a body that never comes."""
    grace = 1.0
    settings = {"PARLEY_DRAIN_GRACE": str(grace), "PARLEY_MAX_BATCH": "64", "PARLEY_LIMIT_N": "64"}
    text = "slow " + ("a" * 97 + " ") * 40
    body = {"messages": [{"role": "user", "content": text}], "stream": True, "logprobs": True, "n": 64}
    with serve({"PARLEY_ENGINE": "echo", **settings}) as served:
        processes = descendants(served.process.pid)
        with unread(served, "/v1/chat/completions", body, buffer=4096), half_sent(served):
            until(lambda: running(served) == 64)
            time.sleep(4)  # all of its answers would be made by then
            assert running(served) == 64
            began = time.monotonic()
            served.process.send_signal(signal.SIGTERM)
            served.process.wait(grace + BODY_SECONDS / 2)
            print(f"\nR15: stalled with a grace of {grace:g} s: exit after {time.monotonic() - began:.1f} s")
        assert "Traceback" not in served.log()
    assert not [pid for pid in processes if command_line(pid)]


def test_r15_an_idle_connection_outlives_a_load_balancer_s_but_not_the_stop() -> None:
    """R15. Fails when we close a connection that a load balancer is about to use again, or when one holds the stop."""
    with serve({"PARLEY_ENGINE": "echo"}) as served:
        connection = HTTPConnection(urlsplit(served.url).netloc, timeout=10)
        for pause in (6.0, 0.0):  # uvicorn's own limit is 5 seconds
            connection.request("GET", "/")
            assert connection.getresponse().read()
            time.sleep(pause)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(15) is not None
        connection.close()


def half_sent(served: Served) -> socket.socket:
    """A connection whose request lacks the end of its body."""
    host, port = urlsplit(served.url).netloc.split(":")
    connection = socket.create_connection((host, int(port)))
    head = "POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    connection.sendall(head.encode() + b'{"user_input')
    return connection
