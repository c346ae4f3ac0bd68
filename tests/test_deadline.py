"""What clients say of the time that they wait, and how long their connections are kept."""

import time

import httpx
import pytest
from uvicorn import Config

from parley.api.app import create_app
from parley.api.chat import Chat
from parley.api.deadline import patience
from parley.api.server import Server
from parley.api.terms import PLAIN, Terms
from parley.contract.errors import ErrorCode, ParleyError
from parley.telemetry.record import Head, Progress, begin


@pytest.mark.parametrize(
    ("headers", "whole", "streamed"),
    [
        ({}, None, None),
        ({"x-stainless-read-timeout": "600"}, 600.0, None),
        ({"x-stainless-read-timeout": "10.5"}, 10.5, None),
        ({"x-stainless-read-timeout": "10"}, 10.0, 10.0),
        ({"x-stainless-read-timeout": "2"}, 2.0, 2.0),
        ({"x-stainless-read-timeout": "soon"}, None, None),
        ({"x-request-timeout": "60", "x-stainless-read-timeout": "2"}, 60.0, 60.0),
    ],
)
def test_a_gap_that_keep_alives_fill_is_no_deadline(
    headers: dict[str, str], whole: float | None, streamed: float | None
) -> None:
    """Fails when a stream of OpenAI's client ends in the queue, although its signs of life would have kept it."""
    assert (patience(headers, streams=False), patience(headers, streams=True)) == (whole, streamed)


class Asked(Chat):
    """Refuses everything, and keeps on what terms it was asked."""

    def __init__(self) -> None:
        self.served = "m"

    def answer(self, messages: object, sampling: object, terms: Terms = PLAIN) -> None:  # type: ignore[override]
        self.terms = terms
        raise ParleyError(ErrorCode.QUEUE_FULL, "full")


async def test_the_route_tells_streams_from_whole_answers() -> None:
    """Fails when a stream's own rule for deadlines holds for nobody, or for answers in one piece as well."""
    app = create_app()
    app.state.chat = chat = Asked()
    begin(Progress(Head("id", "POST", "/v1/chat/completions", time.monotonic())))
    body = {"messages": [{"role": "user", "content": "hi"}]}
    headers = {"x-stainless-read-timeout": "600"}
    limited: list[bool] = []
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://m", headers=headers) as client:
        for stream in (False, True):
            response = await client.post("/v1/chat/completions", json={**body, "stream": stream})
            assert response.status_code == 429
            limited.append(chat.terms.deadline is not None)
    assert limited == [True, False]


def test_an_idle_connection_is_kept_for_longer_than_a_load_balancer_keeps_it() -> None:
    """Fails when one that a load balancer is about to use again is closed, or an operator's own limit is cut."""
    limits = [Server(Config(create_app, timeout_keep_alive=seconds)).config.timeout_keep_alive for seconds in (5, 300)]
    assert limits == [75, 300]
