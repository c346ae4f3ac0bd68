"""What it is worth to keep a conversation where its prefix cache is: the shipped routing against plain round robin."""

import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.image.conftest import Note
from tests.image.podman import Container, running
from tests.image.proxy import CONFIG, haproxy

CONVERSATIONS = 12
TURNS = 5
LONG = " ".join(["Batman and Robin meet the Joker in Gotham City, and the story goes on."] * 30)
"""A first turn of some 600 tokens, which every later turn brings again."""


@dataclass
class Met:
    """What the later turns of the conversations met."""

    at_home: int = 0
    """Turns that the replica of the turn before answered."""
    first_token: list[float] = field(default_factory=list)
    """Seconds."""


def ask(http: httpx.Client, messages: list[dict[str, str]]) -> tuple[str, str, float]:
    """The replica, the answer, and the seconds to its first token."""
    begun = time.perf_counter()
    body = {"model": "pocket", "messages": messages, "stream": True, "max_tokens": 16}
    answer, first = [], 0.0
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():
            if '"content":"' in line and '"content":""' not in line:
                first = first or time.perf_counter() - begun
                answer.append(line.partition('"content":"')[2].partition('"')[0])
    return response.headers["x-served-by"], "".join(answer) or "Yes.", first


def converse(url: str, name: str) -> Met:
    """The conversations, turn by turn in turns, as many people at once would have them."""
    met, homes = Met(), [""] * CONVERSATIONS
    told = [[{"role": "user", "content": f"{name} {number}: {LONG}"}] for number in range(CONVERSATIONS)]
    with httpx.Client(base_url=url, timeout=60) as http:
        for turn in range(TURNS):
            for number, messages in enumerate(told):
                replica, answer, first = ask(http, messages)
                if turn:
                    met.at_home += replica == homes[number]
                    met.first_token.append(first)
                homes[number] = replica
                messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And then?"}]
    return met


def test_conversations_stay_at_home(service_image: str, tmp_path: Path, note: Note) -> None:
    """Fails when the routing that we ship finds the cache of an earlier turn no more often than chance."""
    around = tmp_path / "haproxy.cfg"
    around.write_text(CONFIG.read_text().replace("balance hash var(txn.turn)", "balance random"))
    group = [Container(service_image, f"parley-{n}", f"127.0.0.3{n}") for n in (1, 2, 3)]
    with running(*group):
        with haproxy(group) as url:
            hashed = converse(url, "hashed")
        with haproxy(group, around) as url:
            scattered = converse(url, "scattered")
    turns = CONVERSATIONS * (TURNS - 1)
    for name, met in (("conversation hash", hashed), ("random", scattered)):
        median = statistics.median(met.first_token) * 1000
        note(f"affinity, {name}", f"{met.at_home} of {turns} turns at home, first token p50 {median:.0f} ms")
    assert hashed.at_home == turns
    assert scattered.at_home < turns
