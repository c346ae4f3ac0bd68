"""What one request can do to others, or to the machine: nothing."""

import asyncio
import os
import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import requests

from parley.contract.chat import Message
from parley.contract.errors import ErrorCode
from parley.engine.engine import Event, Failure, Finish
from parley.engine.launch import Launch
from parley.engine.model import resolve
from parley.engine.process import EngineProcess
from parley.engine.runner import Placement, Sampling
from parley.engine.watch import Limits
from parley.tokenizer import Tokenizer
from tests.conftest import POCKET, Served, descendants, serve
from tests.events import all_events
from tests.test_bad_input import BROKEN

NEIGHBOURS = [
    "Batman", "Superman", "Magneto", "Hulk", "Storm", "Asterix", "Tintin", "Akira", "Watchmen", "Maus", "Krypton",
    "Joker", "Thor", "Snoopy", "Spawn",
]  # fmt: skip
POISONS = {
    "an impossible parameter": ([5, 6, 7], Sampling(repetition_penalty=0.0)),
    "a schema that is none": ([5, 6, 7], Sampling(response_format='{"properties": 5}')),
    "an empty prompt": ([], Sampling()),
    "tokens that are none": ([10**6, -5, 2**40], Sampling(max_tokens=4)),
    "longer than the model": ([5, 6] * 600, Sampling(max_tokens=4)),
}


@pytest.fixture(scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EngineProcess]:
    """The engine process with the embedded model, asked directly: past every check of the API."""
    folder = resolve("pocket", tmp_path_factory.mktemp("cache"))
    launch = Launch("openvino", "test", "pocket", str(folder.path), Placement(), str(folder.exports))
    engine = EngineProcess(launch, Limits())
    await engine.start()
    await engine.settled()
    yield engine
    await engine.drain(0)


async def answer(engine: EngineProcess, prompt: list[int], sampling: Sampling) -> tuple[str, Event]:
    """The text of an answer, and its terminal event."""
    events = await all_events(engine.generate(prompt, sampling))
    return "".join(event.text for event in events if not isinstance(event, Failure)), events[-1]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("poison", POISONS)
async def test_r03_a_poison_request_fails_alone(engine: EngineProcess, poison: str) -> None:
    """R3. Fails when one request that the model library cannot take ends, or changes, the answers beside it.

    What raises or gives NaN inside the model step is in tests/test_transformers_runner.py and tests/test_seq2seq.py. A
    schema that cannot be compiled would end this library's process; so schemas are checked a second time there.
    """
    tokenizer = Tokenizer.load(POCKET)
    prompts = [tokenizer.chat([Message("user", f"Who is {name}?")]) for name in NEIGHBOURS]
    neighbours = [(prompt, Sampling(max_tokens=16, temperature=0)) for prompt in prompts]
    clean = await asyncio.gather(*(answer(engine, *job) for job in neighbours))
    jobs = [*neighbours[:8], POISONS[poison], *neighbours[8:]]
    mixed = await asyncio.gather(*(answer(engine, *job) for job in jobs))
    _, end = mixed.pop(8)
    assert isinstance(end, Finish) or end.code is ErrorCode.ENGINE_ERROR  # type: ignore[union-attr]
    assert [text for text, _ in mixed] == [text for text, _ in clean]
    assert all(text for text, _ in clean)
    assert engine.health().restarts == 0
    print(f"\nR3: {poison}: {type(end).__name__}, the other {len(clean)} as in a clean run")


HOOK = """
import os, sys
def note(event, arguments):
    if event == "pickle.find_class":
        with open(os.environ["PICKLES"], "a") as file:
            file.write(f"{os.getpid()} {arguments[0]}.{arguments[1]}\\n")
note("pickle.find_class", ("hook", "installed"))
sys.addaudithook(note)
"""
"""Runs in every process of the service: Python tells of each class or function that a pickle asks for (PEP 578)."""


class Bomb:
    """Unpickling it calls `touch`."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        """What unpickling calls."""
        return os.system, (f"touch {self._canary}",)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[Served, Path]]:
    """A service whose processes write down what they unpickle, and where."""
    (tmp_path / "sitecustomize.py").write_text(HOOK)
    pickles = tmp_path / "pickles"
    env = {"PARLEY_ENGINE": "echo", "PYTHONPATH": str(tmp_path), "PICKLES": str(pickles)}
    with serve(env) as served:
        yield served, pickles


PATHS = ["/chat", "/chat/submit", "/v1/chat/completions", "/tokenize", "/", "/metrics", "/docs.json", "/__batch__"]
KINDS = [
    "application/json", "application/vnd.bentoml+pickle", "application/octet-stream", "application/x-pickle",
    "application/vnd.bentoml.stream+pickle", "multipart/form-data; boundary=x", "",
]  # fmt: skip
HEADERS = {"Payload-Container": "DefaultContainer", "Payload-Meta": "{}", "Batch-Size": "1", "Bentoml-Is-Task": "true"}


def test_r18_no_pickle_is_read_from_any_socket(watched: tuple[Served, Path], tmp_path: Path) -> None:
    """R18. Fails when bytes of a client are unpickled, as BentoML does between its services."""
    served, pickles = watched
    before = pickles.read_text()
    processes = [served.process.pid, *descendants(served.process.pid)]
    assert {str(pid) for pid in processes} <= {line.split()[0] for line in before.splitlines()}
    canary = tmp_path / "canary"
    bombs = [pickle.dumps(Bomb(canary), protocol) for protocol in range(6)]
    for path in PATHS:
        for kind in KINDS:
            for bomb in bombs:
                headers = {**HEADERS, "Content-Type": kind}
                answer = requests.post(served.url + path, data=bomb, headers=headers, timeout=10)
                assert 400 <= answer.status_code < 500
    for body in BROKEN[:4]:
        requests.post(f"{served.url}/chat", data=body, headers={"Content-Type": KINDS[1]}, timeout=10)
    assert requests.post(f"{served.url}/chat", json={"user_input": "hi"}, timeout=10).json() == "hi"
    assert not canary.exists()
    assert pickles.read_text() == before
    print(f"\nR18: {len(PATHS) * len(KINDS) * len(bombs)} pickles sent, none read by {len(processes)} processes")
