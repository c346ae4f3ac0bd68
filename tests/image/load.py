"""Load from clients that know each answer beforehand: whole ones and streams, without any retry of their own."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, takewhile

import httpx

PLAIN_CLIENTS = 8
STREAM_CLIENTS = 6
STREAM_WORDS = 20
"""A second's worth of the model-free engine's slow speech."""
PATIENCE_SECONDS = 300.0


@dataclass(frozen=True)
class Outcome:
    """One request: which kind it was, the replica that answered, and what was wrong; None when it was right."""

    stream: bool
    replica: str
    fault: str | None
    told: bool = False
    """Whether the client was told that its answer is not whole: by a status, an event, or a broken transfer."""


@dataclass
class Load:
    """What the clients have met so far."""

    url: str
    outcomes: list[Outcome] = field(default_factory=list)
    open: dict[int, str] = field(default_factory=dict)
    """The replicas whose streams are under way, by client."""
    _over: threading.Event = field(default_factory=threading.Event)

    @property
    def failures(self) -> list[Outcome]:
        """The requests that did not get their whole answer."""
        return [outcome for outcome in self.outcomes if outcome.fault]

    def run_plain(self, client: int) -> None:
        """Asks for whole answers until the load is over."""
        with httpx.Client(timeout=60) as http:
            for number in self._numbers():
                words = f"client {client} asks {number}"
                self.outcomes.append(_plain(http, f"{self.url}/chat", words))

    def run_streams(self, client: int) -> None:
        """Asks for streams until the load is over."""
        with httpx.Client(timeout=60) as http:
            for number in self._numbers():
                words = " ".join(["slow", f"{client}.{number}", *map(str, range(STREAM_WORDS - 2))])
                self.outcomes.append(self._stream(http, client, words))

    def wait_for(self, requests: int) -> None:
        """Returns when so many requests have ended."""
        _until(lambda: len(self.outcomes) >= requests)

    def wait_for_stream_of(self, replica: str) -> None:
        """Returns when a replica has a stream under way."""
        _until(lambda: replica in list(self.open.values()))

    def end(self) -> None:
        """Lets each client finish what it is doing."""
        self._over.set()

    def _stream(self, http: httpx.Client, client: int, words: str) -> Outcome:
        body = {"model": "echo", "messages": [{"role": "user", "content": words}], "stream": True}
        replica = ""
        try:
            with http.stream("POST", f"{self.url}/v1/chat/completions", json=body) as response:
                replica = self.open[client] = _replica(response)
                events = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
        except httpx.TransportError as error:
            return Outcome(True, replica, type(error).__name__, told=True)
        finally:
            self.open.pop(client, None)
        return _judge(replica, response.status_code, events, words)

    def _numbers(self) -> Iterator[int]:
        return takewhile(lambda _: not self._over.is_set(), count())


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the clients get no answers"
        time.sleep(0.005)


def _plain(http: httpx.Client, url: str, words: str) -> Outcome:
    try:
        response = http.post(url, json={"user_input": words})
    except httpx.TransportError as error:
        return Outcome(False, "", type(error).__name__, told=True)
    if response.status_code != httpx.codes.OK:
        return Outcome(False, _replica(response), f"{response.status_code} {response.text}", told=True)
    return Outcome(False, _replica(response), None if response.json() == words else "another text")


def _judge(replica: str, status: int, events: list[str], words: str) -> Outcome:
    """Right when all the words came, and the `[DONE]` that says so."""
    if error := next((event for event in events if event.startswith('{"error"')), None):
        return Outcome(True, replica, error, told=True)
    if not events or events[-1] != "[DONE]":
        return Outcome(True, replica, f"{status}, {len(events)} events and no end", told=status != httpx.codes.OK)
    return Outcome(True, replica, None if _text(events[:-1]) == words else "another text")


def _replica(response: httpx.Response) -> str:
    return str(response.headers.get("x-served-by", ""))


def _text(events: list[str]) -> str:
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices)


@contextmanager
def under_load(url: str) -> Iterator[Load]:
    """Clients of both kinds ask in the background; when the context has ended, all of them have their answers."""
    load = Load(url)
    plain = [threading.Thread(target=load.run_plain, args=(number,)) for number in range(PLAIN_CLIENTS)]
    streams = [threading.Thread(target=load.run_streams, args=(number,)) for number in range(STREAM_CLIENTS)]
    for thread in plain + streams:
        thread.start()
    try:
        yield load
    finally:
        load.end()
        for thread in plain + streams:
            thread.join()
