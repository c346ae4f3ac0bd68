"""Three replicas behind haproxy, with the configuration that we ship: restarts, deaths, and who answers whom."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

import httpx
import pytest

from tests.image.conftest import Note
from tests.image.load import STREAM_CLIENTS, Load, under_load
from tests.image.podman import Container, running
from tests.image.proxy import haproxy

REQUESTS = 2_000
SEEN_SECONDS = 2.0
"""Longer than haproxy's check interval: it knows that a replica is back."""


def replicas(image: str, **settings: str) -> list[Container]:
    """Three of them on the model-free engine."""
    environment = {"PARLEY_ENGINE": "echo", **settings}
    return [Container(image, f"parley-{n}", f"127.0.0.3{n}", environment=environment) for n in (1, 2, 3)]


@pytest.fixture(scope="module")
def group(service_image: str) -> Iterator[list[Container]]:
    """Replicas that drain, shared: each test leaves all of them running."""
    shared = replicas(service_image)
    with running(*shared):
        yield shared


def behind_haproxy(group: list[Container]) -> AbstractContextManager[str]:
    """One address for all of them."""
    return haproxy([replica.place for replica in group])


def roll(group: list[Container]) -> None:
    """Stops and starts the replicas one by one, as a rolling update does."""
    for replica in group:
        time.sleep(SEEN_SECONDS)
        replica.stop()
        replica.start()


def rolled_under_load(group: list[Container]) -> Load:
    """At least `REQUESTS` from clients of both kinds, while every replica goes and comes back."""
    with behind_haproxy(group) as url, under_load(url) as load:
        roll(group)
        load.wait_for(REQUESTS)
    return load


def counts(load: Load) -> dict[str, object]:
    """What a load came to."""
    streams = sum(outcome.stream for outcome in load.outcomes)
    return {"requests": len(load.outcomes), "streams": streams, "failed": len(load.failures)}


def test_rolling_restart_loses_no_request(group: list[Container], note: Note) -> None:
    """Fails when a stopping replica drops an answer, or a newcomer is sent to one that cannot take it."""
    load = rolled_under_load(group)
    note("rolling restart", counts(load))
    assert load.failures == []
    assert {outcome.replica for outcome in load.outcomes} == {"replica-1", "replica-2", "replica-3"}


def test_a_killed_replica_fails_only_its_own_streams(group: list[Container], note: Note) -> None:
    """Fails when a death is felt by answers of other replicas, goes unnoticed by a client, or is not survived."""
    with behind_haproxy(group) as url, under_load(url) as load:
        time.sleep(SEEN_SECONDS)
        load.wait_for_stream_of("replica-1")
        group[0].kill()
        group[0].start()
        time.sleep(SEEN_SECONDS)
        before = len(load.outcomes)
        load.wait_for(before + 200)
    note("a replica killed under load", counts(load))
    assert 1 <= len(load.failures) <= STREAM_CLIENTS
    assert all(outcome.stream and outcome.replica == "replica-1" and outcome.told for outcome in load.failures)
    assert not any(outcome.fault for outcome in load.outcomes[before:])


def history(turns: list[str]) -> list[dict[str, str]]:
    """Turns as messages, the user's first."""
    return [{"role": "assistant" if n % 2 else "user", "content": turn} for n, turn in enumerate(turns)]


def bodies(first: str) -> dict[str, list[tuple[str, dict[str, object]]]]:
    """The three turns of one conversation, in each contract."""
    turns = [first, "a", "b", "c", "d"]
    system = [{"role": "system", "content": "Be brief."}]
    openai, native = "/v1/chat/completions", "/chat"
    told = [history(turns[:n]) for n in (1, 3, 5)]
    return {
        "OpenAI's": [(openai, {"model": "echo", "messages": messages}) for messages in told],
        "with a system message": [(openai, {"model": "echo", "messages": system + messages}) for messages in told],
        "history": [(native, {"history": messages}) for messages in told],
        "conversation": [
            (native, {"past_user_inputs": [], "generated_responses": [], "user_input": first}),
            (native, {"past_user_inputs": [first], "generated_responses": ["a"], "user_input": "b"}),
            (native, {"past_user_inputs": [first, "b"], "generated_responses": ["a", "c"], "user_input": "d"}),
        ],
    }


def test_a_conversation_stays_where_its_cache_is(group: list[Container]) -> None:
    """Fails when later turns of a conversation pay for their history again, on a replica that never saw it."""
    seen: set[str] = set()
    with behind_haproxy(group) as url, httpx.Client(base_url=url) as http:
        for number in range(12):
            homes = set()
            for turns in bodies(f"Who is hero number {number}?").values():
                homes |= {http.post(path, json=body).headers["x-served-by"] for path, body in turns}
            assert len(homes) == 1
            seen |= homes
    assert len(seen) == len(group)


def test_without_drain_answers_are_lost(service_image: str, note: Note) -> None:
    """Fails when the rolling restart above would pass without the drain that it is about."""
    hasty = replicas(service_image, PARLEY_DRAIN_GRACE="0")
    with running(*hasty):
        load = rolled_under_load(hasty)
    note("rolling restart without drain", counts(load))
    assert load.failures
    assert all(outcome.told for outcome in load.failures)
