"""What is left when clients leave, stall, or ask for more than fits: nothing (R11, R22)."""

import random
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
import requests

from parley.api.listener import READER_SECONDS
from tests.conftest import Served, serve
from tests.readers import memory, running, unread, worker_pid
from tests.scrape import scrape, total, until
from tests.soak import amount

COMPLETIONS = "/v1/chat/completions"
ANSWERS = 64
"""Of one request that nobody reads: more bytes than the kernel buffers for one connection."""


@pytest.fixture(scope="module")
def wide() -> Iterator[Served]:
    """A service that gives many answers to one request."""
    settings = {"PARLEY_MAX_BATCH": str(2 * ANSWERS), "PARLEY_LIMIT_N": str(ANSWERS)}
    with serve({"PARLEY_ENGINE": "echo", **settings}) as served:
        yield served


class Cut(NamedTuple):
    """How a stalled reader was dealt with: seconds until its answers were ended, bytes that it held meanwhile."""

    seconds: float
    held: int


@pytest.fixture(scope="module")
def stalled(wide: Served) -> Iterator[tuple[socket.socket, Future[Cut]]]:
    """A reader that has stopped reading, and what becomes of it; half a minute passes, beside other tests."""
    before = memory(worker_pid(wide))
    text = "slow " + ("a" * 97 + " ") * 40
    body = {"messages": [{"role": "user", "content": text}], "stream": True, "logprobs": True, "n": ANSWERS}
    with unread(wide, COMPLETIONS, body, buffer=4096) as connection, ThreadPoolExecutor(1) as pool:
        until(lambda: running(wide) == ANSWERS)
        yield connection, pool.submit(watched, wide, before)


def watched(served: Served, before: int) -> Cut:
    """Looks at the service until its answers have ended, twice the time at most that a stalled reader is given."""
    began, held = time.monotonic(), 0
    while (seconds := time.monotonic() - began) < 2 * READER_SECONDS and running(served):
        held = max(held, memory(worker_pid(served)) - before)
        time.sleep(0.5)
    return Cut(seconds, held)


SLOW = "slow " + "word " * 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, {"messages": [{"role": "user", "content": SLOW}], "stream": True}),
        (COMPLETIONS, {"messages": [{"role": "user", "content": SLOW}]}),
        ("/chat", {"user_input": SLOW}),
        ("/chat", {"history": [{"role": "user", "content": SLOW}]}),
    ],
)
def test_r11_a_client_that_leaves_frees_its_place(echo_service: Served, path: str, body: object) -> None:
    """R11. Fails when the engine goes on writing for somebody who is gone."""
    connections = [unread(echo_service, path, body) for _ in range(10)]
    until(lambda: running(echo_service) == 10)
    for connection in connections:
        connection.close()
    until(lambda: running(echo_service) == 0, seconds=5)


@pytest.fixture(scope="module")
def narrow() -> Iterator[Served]:
    """A service with one place."""
    with serve({"PARLEY_ENGINE": "echo", "PARLEY_MAX_BATCH": "1", "PARLEY_MAX_QUEUE": "10"}) as served:
        yield served


@pytest.mark.parametrize("stream", [True, False])
def test_r11_a_client_that_leaves_while_it_waits_is_gone_at_once(narrow: Served, stream: bool) -> None:
    """R11. Fails when a stream notices only with its first frame that nobody reads it."""
    body = {"messages": [{"role": "user", "content": SLOW}], "stream": stream}
    with unread(narrow, COMPLETIONS, body):
        until(lambda: running(narrow) == 1)
        waiting = [unread(narrow, COMPLETIONS, body) for _ in range(10)]
        until(lambda: total(scrape(narrow), "vllm:num_requests_waiting") == 10)
        for connection in waiting:
            connection.close()
        left = time.monotonic()
        until(lambda: total(scrape(narrow), "vllm:num_requests_waiting") == 0, seconds=5)
        print(f"\nR11: ten that left the queue (stream: {stream}) are out of it after {time.monotonic() - left:.2f} s")
    until(lambda: running(narrow) == 0, seconds=5)


ASKED = {"role": "user", "content": "Tell me everything about Batman and Robin."}
FORMS: list[tuple[str, dict[str, Any]]] = [
    (COMPLETIONS, {"messages": [ASKED], "stream": True, "max_tokens": 400}),
    (COMPLETIONS, {"messages": [ASKED], "max_tokens": 400, "n": 2}),
    ("/chat", {"user_input": ASKED["content"]}),
    ("/chat", {"history": [ASKED]}),
]


@pytest.mark.usefixtures("stalled")  # it needs its time; test_r11_a_reader_that_stalls_is_cut sees what became of it
def test_r11_clients_that_leave_leave_nothing(service: Served) -> None:
    """R11. Fails when answers go on, or keep their cache, for clients that reset their connections."""
    rng = random.Random(11)
    resets = amount(200, 2000)
    for _ in range(resets // 40):
        connections = [unread(service, *rng.choice(FORMS)) for _ in range(40)]
        time.sleep(rng.uniform(0, 0.3))
        for connection in connections:
            connection.close()
    began = time.monotonic()
    until(lambda: running(service) == 0, seconds=10)
    until(lambda: total(scrape(service), "vllm:kv_cache_usage_perc") == 0, seconds=10)
    print(f"\nR11: {resets} resets, nothing runs and the cache is empty after {time.monotonic() - began:.2f} s")
    assert total(scrape(service), "vllm:num_requests_waiting") == 0


def test_r22_more_than_the_cache_holds_ends_well() -> None:
    """R22. Fails when a full cache hangs, loses or changes answers, or holds on to anything."""
    with serve({"PARLEY_KV_CACHE_GB": "0.02"}) as served:  # room for two of the longest conversations
        long = [f"{index}: " + "Who is Batman? " * 150 for index in range(64)]

        def ask(text: str) -> tuple[int, str]:
            body = {"messages": [{"role": "user", "content": text}], "max_tokens": 16, "temperature": 0}
            answer = requests.post(served.url + COMPLETIONS, json=body, timeout=300)
            said = answer.json()["choices"][0]["message"]["content"] if answer.ok else answer.json()["error"]["code"]
            return answer.status_code, said

        alone = ask(long[0])
        with ThreadPoolExecutor(ANSWERS) as pool:
            together = list(pool.map(ask, long))
        print(f"\nR22: 64 long requests on a cache for 2: {dict(Counter(status for status, _ in together))}")
        assert {status for status, _ in together} <= {200, 429}
        assert together[0] == alone
        until(lambda: total(scrape(served), "vllm:kv_cache_usage_perc") == 0, seconds=10)
        assert running(served) == 0


def test_r11_a_reader_that_stalls_is_cut(wide: Served, stalled: tuple[socket.socket, Future[Cut]]) -> None:
    """R11. Fails when a client that stops reading keeps its places for ever, or is written to without bound."""
    connection, watch = stalled
    cut = watch.result()
    held = cut.held / 2**20
    print(f"\nR11: stalled reader of {ANSWERS} answers cut after {cut.seconds:.0f} s; it held {held:.0f} MiB")
    assert running(wide) == 0
    assert cut.seconds > READER_SECONDS / 2, "it was not stalled: the kernel took all of its answer"
    assert held < 64
    with pytest.raises(ConnectionResetError):
        b"".join(iter(lambda: connection.recv(65536), b""))
