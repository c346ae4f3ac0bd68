"""R8 and R9: more than can be served, and requests that are slow or huge, harm nobody else."""

import http.client
import json
import re
import selectors
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from parley.api.admission import Admission, Place
from parley.api.errors import ErrorResponse
from parley.contract.errors import ErrorCode, ParleyError
from tests.conftest import Served, serve
from tests.readers import memory, worker_pid
from tests.scrape import records, until
from tests.soak import amount

COMPLETIONS = "/v1/chat/completions"
PLACES, QUEUE = 4, 8
HEAD = "POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def small() -> Iterator[Served]:
    """A service with few places."""
    settings = {"PARLEY_MAX_BATCH": str(PLACES), "PARLEY_MAX_QUEUE": str(QUEUE), "PARLEY_LIMIT_BODY_BYTES": "65536"}
    with serve({"PARLEY_ENGINE": "echo", **settings}) as served:
        yield served


def slow(words: int, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "slow " + "word " * words}], **more}


def at_once(count: int, ask: Callable[[int], requests.Response]) -> list[tuple[requests.Response, float]]:
    """Answers to requests that start together, and the seconds that each took."""
    barrier = threading.Barrier(count)

    def timed(index: int) -> tuple[requests.Response, float]:
        barrier.wait()
        began = time.monotonic()
        return ask(index), time.monotonic() - began

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(timed, range(count)))


def burst(served: Served, body: Any, count: int) -> list[tuple[bytes, float]]:
    """Whole responses to requests that are sent together on open connections, and the seconds until each was there.

    One loop reads them all: a thread for each would measure this process.
    """
    host, port = urlsplit(served.url).netloc.split(":")
    content = json.dumps(body).encode()
    head = HEAD.replace("/chat", COMPLETIONS) + f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    connections = [socket.create_connection((host, int(port))) for _ in range(count)]
    answers = dict.fromkeys(connections, b"")
    seconds: dict[socket.socket, float] = {}
    with selectors.DefaultSelector() as selector:
        began = time.monotonic()
        for connection in connections:
            connection.sendall(head.encode() + content)
            selector.register(connection, selectors.EVENT_READ)
        while len(seconds) < count:
            for key, _ in selector.select(60):
                connection = next(connection for connection in connections if connection is key.fileobj)
                data = connection.recv(65536)
                answers[connection] += data
                if not data:
                    seconds[connection] = time.monotonic() - began
                    selector.unregister(connection)
                    connection.close()
    return [(answers[connection], seconds[connection]) for connection in connections]


def test_r08_ten_times_too_many_are_served_or_refused_at_once(small: Served) -> None:
    """Fails when overload ends in timeouts and 5xx, or refusals do not say when to come back (R8)."""
    count = 10 * (PLACES + QUEUE)
    answers = burst(small, slow(20), count)
    statuses = Counter(answer.split(b" ")[1] for answer, _ in answers)
    assert statuses == {b"200": PLACES + QUEUE, b"429": count - PLACES - QUEUE}
    waits: list[int] = []
    for answer, _ in answers:
        head, _, body = answer.partition(b"\r\n\r\n")
        if b" 429 " in head:
            headers = dict(line.split(": ") for line in head.decode().split("\r\n")[1:])
            assert json.loads(body)["error"]["code"] == "queue_full"
            waits.append(int(headers["retry-after-ms"]))
            assert 0 < waits[-1] <= 1000 * int(headers["retry-after"]) < waits[-1] + 1000
    assert len(set(waits)) > len(waits) / 4, "no jitter"
    refusals = sorted(seconds for answer, seconds in answers if b" 429 " in answer[:20])
    middle, last = (1000 * seconds for seconds in (refusals[len(refusals) // 2], refusals[-1]))
    print(f"\nR8: {dict(statuses)}; {len(refusals)} refusals sent at once: p50 {middle:.0f} ms, last {last:.0f} ms")
    assert requests.get(f"{small.url}/readyz", timeout=5).json()["running"] == 0


def test_r08_the_admitted_begin_in_the_time_that_the_refused_are_told(small: Served) -> None:
    """Fails when a place in the queue is worth nothing, or a burst leaves something behind in memory (R8)."""
    at_once(PLACES, lambda _: requests.post(small.url + COMPLETIONS, json=slow(20), timeout=60))  # measures the rate
    begun = len(records(small))
    bursts = amount(2, 20)
    waits: list[int] = []
    used: list[int] = []
    for _ in range(bursts):
        answers = burst(small, slow(20, stream=True), 10 * (PLACES + QUEUE))
        waits += [int(wait) for answer, _ in answers for wait in re.findall(rb"retry-after-ms: (\d+)", answer)]
        used.append(memory(worker_pid(small)))
    until(lambda: len(admitted(small, begun)) >= bursts * (PLACES + QUEUE))
    slowest, promised = max(admitted(small, begun)), statistics.median(waits) / 1000
    grown = (used[-1] - used[0]) / 2**20
    print(
        f"\nR8: {bursts} bursts, {len(waits)} refused; slowest time to first token {slowest:.2f} s, "
        f"the refused are told {promised:.2f} s; memory grew by {grown:.1f} MiB"
    )
    assert slowest < 2 * promised
    assert grown < 16


def admitted(served: Served, since: int) -> list[float]:
    """Times to the first token of the answers that were begun after so many records."""
    return [record["time_to_first_token"] for record in records(served)[since:] if record["status"] == 200]


@pytest.mark.parametrize(
    "code",
    [ErrorCode.QUEUE_FULL, ErrorCode.RATE_LIMIT_EXCEEDED, ErrorCode.ENGINE_UNAVAILABLE, ErrorCode.DRAINING],
)
def test_r08_no_refusal_leaves_open_when_to_return(code: ErrorCode) -> None:
    """R8, R15. Fails when one of several answers, or a framework below us, refuses without a `Retry-After`."""
    refusal = ErrorResponse(ParleyError(code, "no"))
    assert (refusal.headers["retry-after"], refusal.headers["retry-after-ms"]) == ("1", "1000")


@pytest.mark.parametrize("seconds", [3.0, 3.0004, 2.9996, 0.0001, 7.25])
def test_r08_both_ways_of_telling_a_wait_agree(seconds: float) -> None:
    """R8. Fails when a client that reads milliseconds comes back earlier, or a second later, than one of seconds."""
    headers = ErrorResponse(ParleyError(ErrorCode.QUEUE_FULL, "no", retry_after=seconds)).headers
    milliseconds = int(headers["retry-after-ms"])
    assert 1000 * seconds <= milliseconds <= 1000 * int(headers["retry-after"]) < milliseconds + 1000


def test_those_who_wait_are_served_in_turn(small: Served) -> None:
    """Fails when the queue starves somebody, or more run than there are places."""
    running: list[int] = []
    with ThreadPoolExecutor(PLACES + QUEUE) as pool:
        asked = [
            pool.submit(requests.post, small.url + COMPLETIONS, json=slow(10), timeout=60)
            for _ in range(PLACES + QUEUE)
        ]
        while not all(future.done() for future in asked):
            running.append(requests.get(f"{small.url}/readyz", timeout=5).json()["running"])
    assert [future.result().status_code for future in asked] == [200] * (PLACES + QUEUE)
    assert max(running) == PLACES


def test_several_answers_to_one_request_take_several_places(small: Served) -> None:
    """Fails when `n` is a way around the queue's bound."""
    answers = at_once(8, lambda _: requests.post(small.url + COMPLETIONS, json=slow(20, n=4), timeout=60))
    assert Counter(answer.status_code for answer, _ in answers) == {200: 3, 429: 5}  # one runs, two wait
    assert requests.post(small.url + COMPLETIONS, json=slow(1, n=8), timeout=60).status_code == 200


def test_who_cannot_be_served_in_time_is_not_begun(small: Served) -> None:
    """Fails when work is begun for a client that has gone, and those who still wait are made to wait longer."""
    at_once(PLACES, lambda _: requests.post(small.url + COMPLETIONS, json=slow(20), timeout=60))  # measures the rate
    with ThreadPoolExecutor(PLACES) as pool:
        full = [pool.submit(requests.post, small.url + COMPLETIONS, json=slow(80), timeout=60) for _ in range(PLACES)]
        while requests.get(f"{small.url}/readyz", timeout=5).json()["running"] < PLACES:
            time.sleep(0.02)
        impatient = {"X-Request-Timeout": "0.05"}
        refused = requests.post(small.url + COMPLETIONS, json=slow(1), headers=impatient, timeout=20)
        # More than the quarter of an answer that it is expected to wait, less than the four seconds that it has to.
        hopeful = {"X-Request-Timeout": "2"}
        dropped = requests.post(small.url + COMPLETIONS, json=slow(1), headers=hopeful, timeout=20)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    assert (dropped.status_code, dropped.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert [future.result().status_code for future in full] == [200] * PLACES


def half_sent(served: Served, length: int = 100) -> socket.socket:
    """A connection whose request lacks the end of its body."""
    host, port = urlsplit(served.url).netloc.split(":")
    connection = socket.create_connection((host, int(port)))
    connection.sendall(f'{HEAD}Content-Length: {length}\r\n\r\n{{"user_input'.encode())
    return connection


def test_r09_half_sent_bodies_shut_nobody_out_and_are_dropped(small: Served) -> None:
    """Fails when a place is taken before the body has arrived, or a stalled connection is held for ever (R9)."""
    stalled = [half_sent(small) for _ in range(300)]
    answers = [requests.post(f"{small.url}/chat", json={"user_input": "hi"}, timeout=10).json() for _ in range(50)]
    assert answers == ["hi"] * 50
    print("\nR9: 300 half-sent bodies, 50 of 50 normal requests answered")
    for connection in stalled:
        connection.settimeout(30)
        told = b"".join(iter(lambda connection=connection: connection.recv(65536), b""))
        assert told.startswith(b"HTTP/1.1 504 ")
        assert b"deadline_exceeded" in told
        connection.close()


def opened(served: Served, sent: bytes) -> socket.socket:
    """A connection on which this was sent, as far as it was taken."""
    host, port = urlsplit(served.url).netloc.split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    with suppress(OSError):
        connection.sendall(sent)
    return connection


def told(connection: socket.socket) -> bytes:
    """What comes until the connection is closed."""
    with connection, suppress(ConnectionError):
        return b"".join(iter(lambda: connection.recv(65536), b""))
    return b""


CHUNKED = HEAD.encode() + b'Transfer-Encoding: chunked\r\n\r\n12\r\n{"user_input":"hi"}\r\n0\r\n'


@pytest.mark.parametrize(
    "begun", [b"GET /livez HTTP/1.1\r\nX: ", b"GET /", CHUNKED + b"X: "], ids=["field", "path", "end"]
)
def test_r09_a_head_has_a_longest_length(small: Served, begun: bytes) -> None:
    """Fails when a head without end, which costs the square of its length, is read for as long as it comes (R9)."""
    before = memory(worker_pid(small))
    connection = opened(small, begun + b"a" * 8_000_000)
    answer = told(connection)
    assert not answer or answer.startswith(b"HTTP/1.1 400 ") or b"HTTP/1.1 400 " in answer
    assert memory(worker_pid(small)) - before < 30_000_000
    assert requests.post(f"{small.url}/chat", json={"user_input": "hi"}, timeout=10).json() == "hi"


def test_r09_a_connection_without_a_request_is_closed(small: Served) -> None:
    """Fails when connections that bring nothing, or half a head, are held until there are no more to be had (R9)."""
    idle = [opened(small, sent) for sent in (b"", b"GET / HT", b"\r\n", b"POST /chat HTTP/1.1\r\nHost: x\r\n")]
    with requests.Session() as kept:
        assert kept.post(f"{small.url}{COMPLETIONS}", json=slow(230), timeout=30).ok  # longer than a head may take
    assert [told(connection) for connection in idle] == [b""] * len(idle)


@pytest.mark.parametrize("path", ["/chat", COMPLETIONS, "/nowhere"])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [65_537, 3_000_000])
def test_r09_a_body_beyond_the_limit_is_a_413(small: Served, path: str, chunked: bool, size: int) -> None:
    """Fails when a chunked body gets around the limit, or the client is cut off before it can read why (R9)."""
    body = json.dumps({"user_input": "x" * (size - 18)}).encode()
    pieces = (body[start : start + 50_000] for start in range(0, size, 50_000))
    headers = {"Content-Type": "application/json"}
    answer = requests.post(small.url + path, data=pieces if chunked else body, headers=headers, timeout=20)
    assert len(body) == size
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_r09_a_client_that_asks_first_is_refused_before_it_sends(small: Served) -> None:
    """Fails when `Expect: 100-continue` makes a client upload what is refused anyway (R9)."""
    host, port = urlsplit(small.url).netloc.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    connection.putrequest("POST", "/chat")
    for name, value in {
        "Content-Type": "application/json",
        "Content-Length": "9" * 12,
        "Expect": "100-continue",
    }.items():
        connection.putheader(name, value)
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


class Door:
    """An `Admission` under test, and the places that it started."""

    def __init__(self, places: int, queue: int) -> None:
        self.admission = Admission(places, queue)
        self.started: list[str] = []

    def enter(self, name: str, answers: int = 1, patience: float | None = None, now: float = 0.0) -> Place:
        return self.admission.enter(answers, patience, now, 0.5, lambda: self.started.append(name))


def test_admission_starts_the_first_who_fits_and_nobody_past_them() -> None:
    """Fails when a large request is overtaken for ever, or a place stays empty while somebody waits."""
    door = Door(4, 8)
    first, _ = door.enter("a", 2), door.enter("b", 1)
    door.enter("c", 3)
    last = door.enter("d", 1)
    assert door.started == ["a", "b"]
    door.admission.leave(first, 1.0)
    assert door.started == ["a", "b", "c"]
    assert (door.admission.running, door.admission.waiting) == (4, 1)
    door.admission.leave(last, 1.0)
    assert (door.admission.running, door.admission.waiting) == (4, 0)


def test_admission_tells_who_waits_while_they_come_and_go() -> None:
    """Fails when a scrape, which runs on a thread, walks through a queue that changes under it, and gets a 500."""
    door = Door(1, 2000)
    for _ in range(1001):
        door.enter("early")
    stop = threading.Event()

    def scrape() -> set[int]:
        told = set[int]()
        while not stop.is_set():
            told.add(door.admission.waiting)
        return told

    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(scrape)
        for _ in range(20):
            place = door.enter("late")
            time.sleep(0)  # lets the thread go on
            door.admission.leave(place, 1.0)
        stop.set()
        assert told.result() <= {1000, 1001}


def test_admission_refusals_change_nothing_and_say_when_to_return() -> None:
    """Fails when the time told has nothing to do with the queue."""
    door = Door(2, 2)
    places = [door.enter(name) for name in "abcd"]
    for _ in range(3):
        with pytest.raises(ParleyError) as caught:
            door.enter("e")
        assert caught.value.code is ErrorCode.QUEUE_FULL
        assert caught.value.retry_after == 1.5  # three answers at a second each, two at a time
    places[0].answered = True
    door.admission.leave(places[0], 10.0)  # answers take ten seconds here
    door.enter("e")
    with pytest.raises(ParleyError) as caught:
        door.enter("f")
    assert caught.value.retry_after == 15.0


def test_admission_refuses_who_will_not_wait_that_long() -> None:
    """Fails when a client waits in a queue that it cannot outlast."""
    door = Door(1, 8)
    first = door.enter("a")
    first.answered = True
    door.admission.leave(first, 10.0)
    door.enter("b")
    with pytest.raises(ParleyError) as caught:
        door.enter("c", patience=5.0)
    assert caught.value.code is ErrorCode.QUEUE_FULL
    door.enter("d", patience=15.0)


def test_admission_learns_nothing_from_what_the_engine_did_not_take() -> None:
    """Fails when refusals, which take no time, tell the next clients to come back at once."""
    door = Door(1, 1)
    slow = door.enter("a")
    slow.answered = True
    door.admission.leave(slow, 10.0)
    for _ in range(50):
        door.admission.leave(door.enter("refused", now=10.0), 10.0)
    door.enter("b", now=10.0)
    door.enter("c", now=10.0)
    with pytest.raises(ParleyError) as caught:
        door.enter("d", now=10.0)
    assert caught.value.retry_after == 20.0


def test_admission_lets_one_large_request_in_alone() -> None:
    """Fails when a request for more answers than there are places waits for ever."""
    door = Door(2, 8)
    place = door.enter("a", 8)
    assert door.started == ["a"]
    door.enter("b")
    assert door.started == ["a"]
    door.admission.leave(place, 1.0)
    assert door.started == ["a", "b"]
