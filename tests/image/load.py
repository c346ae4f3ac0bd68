"""Load from clients that know each answer beforehand: whole ones and streams, without any retry of their own."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, takewhile

import httpx

PLAIN_CLIENTS = 8
STREAM_CLIENTS = 6
STREAM_WORDS = 20
"""A second's worth of the model-free engine's slow speech."""


@dataclass(frozen=True)
class Outcome:
    """One request: which kind it was, the replica that answered, and what was wrong; None when it was right."""

    stream: bool
    replica: str
    fault: str | None


@dataclass
class Load:
    """What the clients have met so far."""

    url: str
    outcomes: list[Outcome] = field(default_factory=list)
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
                self.outcomes.append(_stream(http, f"{self.url}/v1/chat/completions", words))

    def end(self) -> None:
        """Lets each client finish what it is doing."""
        self._over.set()

    def _numbers(self) -> Iterator[int]:
        return takewhile(lambda _: not self._over.is_set(), count())


def _plain(http: httpx.Client, url: str, words: str) -> Outcome:
    try:
        response = http.post(url, json={"user_input": words})
    except httpx.TransportError as error:
        return Outcome(False, "", type(error).__name__)
    right = response.status_code == httpx.codes.OK and response.json() == words
    return Outcome(False, _replica(response), None if right else f"{response.status_code} {response.text}")


def _stream(http: httpx.Client, url: str, words: str) -> Outcome:
    """Right when all the words came, and the `[DONE]` that says so."""
    body = {"model": "echo", "messages": [{"role": "user", "content": words}], "stream": True}
    replica, events = "", []
    try:
        with http.stream("POST", url, json=body) as response:
            replica = _replica(response)
            events = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    except httpx.TransportError as error:
        return Outcome(True, replica, type(error).__name__)
    if not events or events[-1] != "[DONE]":
        return Outcome(True, replica, events[-1] if events else f"{response.status_code} without an event")
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
