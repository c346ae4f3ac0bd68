"""What it is worth to keep a conversation where its prefix cache is: the shipped routing against round robin."""

import json
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.conftest import POCKET, Served, serve
from tests.image.conftest import Note
from tests.image.podman import Container, running
from tests.image.proxy import CONFIG, haproxy
from tests.scrape import scrape, total

TURNS = 4
MANY, FEW = 13, 7
"""Conversations at once. No multiples of three: round robin would keep each of them where it was."""
LONG = " ".join(["Batman and Robin meet the Joker in Gotham City, and the story goes on."] * 30)
"""A first turn of some 600 tokens, which every later turn brings again."""

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}
"""Ten million parameters: enough for a long history to be felt."""


@dataclass
class Met:
    """What the later turns of the conversations met."""

    at_home: int = 0
    """Turns that the replica of the turn before answered."""
    first_token: list[float] = field(default_factory=list)
    """Seconds."""

    def __str__(self) -> str:
        median = statistics.median(self.first_token) * 1000
        return f"{self.at_home} of {len(self.first_token)} turns at home, first token p50 {median:.0f} ms"


@dataclass
class Hits:
    """Prompt tokens that the replicas looked up in their caches, and how many of them were there."""

    queries: float
    found: float

    @classmethod
    def of(cls, group: list[Served]) -> "Hits":
        """All of a group's, since its start."""
        series = [scrape(served) for served in group]
        counts = [
            sum(total(each, f"vllm:prefix_cache_{name}_total") for each in series) for name in ("queries", "hits")
        ]
        return cls(*counts)

    def share_since(self, before: "Hits") -> float:
        """The share that was found since then."""
        return (self.found - before.found) / (self.queries - before.queries)


def ask(http: httpx.Client, messages: list[dict[str, str]]) -> tuple[str, str, float]:
    """The replica, the answer, and the seconds to its first token."""
    begun = time.perf_counter()
    body = {"messages": messages, "stream": True, "max_tokens": 16, "temperature": 0}
    answer, first = "", 0.0
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {") and (text := _text(line)):
                first = first or time.perf_counter() - begun
                answer += text
    return response.headers["x-served-by"], answer or "Yes.", first or time.perf_counter() - begun


def _text(line: str) -> str:
    choices = json.loads(line.removeprefix("data: "))["choices"]
    return "".join(choice["delta"].get("content", "") for choice in choices)


def converse(url: str, name: str, conversations: int) -> Met:
    """The conversations, turn by turn in turns, as many people at once would have them."""
    met, homes = Met(), [""] * conversations
    told = [[{"role": "user", "content": f"{name} {number}: {LONG}"}] for number in range(conversations)]
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


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our configuration, with the balance that everybody begins with."""
    path = tmp_path_factory.mktemp("haproxy") / "haproxy.cfg"
    ours = CONFIG.read_text()
    path.write_text(ours.replace("balance hash var(txn.turn)", "balance roundrobin"))
    assert path.read_text() != ours
    return path


def test_conversations_stay_at_home(service_image: str, around: Path, note: Note) -> None:
    """Fails when the routing that we ship finds the replica of an earlier turn no more often than round robin."""
    group = [Container(service_image, f"parley-{n}", f"127.0.0.3{n}") for n in (1, 2, 3)]
    with running(*group):
        places = [each.place for each in group]
        with haproxy(places) as url:
            hashed = converse(url, "hashed", MANY)
        with haproxy(places, around) as url:
            scattered = converse(url, "around", MANY)
    note("affinity, embedded model, conversation hash", str(hashed))
    note("affinity, embedded model, round robin", str(scattered))
    assert hashed.at_home == len(hashed.first_token)
    assert scattered.at_home < len(scattered.first_token)


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of `SHAPE` with random weights, which speaks the embedded model's tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model") / "larger"
    config = json.loads((POCKET / "config.json").read_text()) | SHAPE
    del config["head_dim"]
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(POCKET / name, folder)
    return folder


@pytest.fixture
def group(larger: Path) -> Iterator[list[Served]]:
    """Three replicas of the larger model, on the engine that counts what it finds in its cache."""
    settings = {"PARLEY_MODEL": str(larger), "PARLEY_ENGINE": "transformers", "PARLEY_DEVICE": "cpu"}
    settings |= {"PARLEY_THREADS": "1", "PARLEY_MAX_BATCH": "4"}  # they share a machine
    settings |= {"PARLEY_KV_CACHE_GB": "0.5"}  # room for all, should one replica be the home of all
    with ExitStack() as stack:
        yield [stack.enter_context(serve(settings)) for _ in range(3)]


def test_caches_are_found(group: list[Served], around: Path, note: Note) -> None:
    """Fails when the routing that we ship does not save the work that it is there to save."""
    places = [each.url.removeprefix("http://") for each in group]
    start = Hits.of(group)
    with haproxy(places) as url:
        hashed = converse(url, "hashed", FEW)
    between = Hits.of(group)
    with haproxy(places, around) as url:
        scattered = converse(url, "around", FEW)
    found, found_around = between.share_since(start), Hits.of(group).share_since(between)
    note("affinity, 10 M parameters, conversation hash", f"{hashed}, {found:.0%} of prompt tokens cached")
    note("affinity, 10 M parameters, round robin", f"{scattered}, {found_around:.0%} of prompt tokens cached")
    assert found > found_around
