"""openai-python against real faults: what it retries, what it raises, what it parses."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import openai
import pydantic
import pytest

from tests.conftest import Served, serve
from tests.scrape import records, until

HELLO: list[Any] = [{"role": "user", "content": "hello there"}]
SLOW: list[Any] = [{"role": "user", "content": "slow " + "word " * 30}]


@pytest.fixture(scope="module")
def narrow() -> Iterator[Served]:
    """A service with one place and no queue: whoever comes second is refused."""
    with serve({"PARLEY_ENGINE": "echo", "PARLEY_MAX_BATCH": "1", "PARLEY_MAX_QUEUE": "0"}) as served:
        yield served


def client(served: Served, retries: int = 10) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=retries)


def read(stream: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def test_a_refused_request_is_tried_again_until_it_is_served(narrow: Served) -> None:
    """Fails when a refusal lacks the headers that the package waits by, and users see errors under load."""

    def ask(index: int) -> tuple[str | None, int]:
        with client(narrow) as own:
            raw = own.chat.completions.with_raw_response.create(model="echo", messages=SLOW)
            return raw.parse().choices[0].message.content, raw.retries_taken

    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(ask, range(3)))
    retries = [taken for _, taken in answers]
    print(f"\nretries taken: {retries}")
    assert [text for text, _ in answers] == [SLOW[0]["content"]] * 3
    assert min(retries) == 0
    assert sum(retries) >= 2
    assert max(retries) < 10


async def test_streams_and_asynchronous_requests_are_tried_again_too(narrow: Served) -> None:
    """Fails when a refused stream is a broken one, or only one of the package's two clients comes back."""
    async with openai.AsyncOpenAI(base_url=f"{narrow.url}/v1", api_key="none", max_retries=10) as own:
        first = await own.chat.completions.create(model="echo", messages=SLOW, stream=True)
        await anext(first)
        second = await own.chat.completions.with_raw_response.create(model="echo", messages=HELLO, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in second.parse()])
        assert (text, second.retries_taken > 0) == ("hello there", True)


def test_a_restarting_engine_costs_a_retry(narrow: Served) -> None:
    """Fails when users see a 503 because the engine process was replaced under them."""
    os.kill(narrow.engine_pid(), signal.SIGKILL)
    until(lambda: narrow.readyz() == 503)
    with client(narrow) as own:
        raw = own.chat.completions.with_raw_response.create(model="echo", messages=HELLO)
        assert raw.parse().choices[0].message.content == "hello there"
    assert raw.retries_taken > 0


def test_what_does_not_get_better_is_not_tried_again(narrow: Served) -> None:
    """Fails when a mistake of the caller's is sent three times."""
    keyed = {"Idempotency-Key": "judge", "x-request-id": "conflict"}
    with client(narrow) as own:
        own.chat.completions.create(model="echo", messages=HELLO, extra_headers=keyed)
        with pytest.raises(openai.ConflictError):
            own.chat.completions.create(model="echo", messages=SLOW, extra_headers=keyed)
        with pytest.raises(openai.NotFoundError):
            own.chat.completions.create(model="other", messages=HELLO, extra_headers={"x-request-id": "no-model"})
        with pytest.raises(openai.NotFoundError):
            own.responses.create(model="echo", input="hello")
    until(lambda: len(records(narrow, "conflict")) == 2 and len(records(narrow, "no-model")) == 1)


def test_a_client_that_gives_up_leaves_nothing_running(narrow: Served) -> None:
    """Fails when the package's own timeout, which it tells us, does not end the work."""
    with client(narrow, retries=0) as own, pytest.raises((openai.APITimeoutError, openai.InternalServerError)):
        own.with_options(timeout=0.3).chat.completions.create(model="echo", messages=SLOW)
    with client(narrow) as own:
        assert own.chat.completions.create(model="echo", messages=HELLO).choices[0].message.content == "hello there"


def test_r01_a_stream_that_breaks_raises(narrow: Served) -> None:
    """R1. Fails when the package takes half an answer for a whole one: it raises nothing on a stream merely cut."""
    with client(narrow, retries=0) as own:
        stream = own.chat.completions.create(model="echo", messages=SLOW, stream=True)
        next(stream)
        os.kill(narrow.engine_pid(), signal.SIGKILL)
        with pytest.raises(openai.APIError) as caught:
            read(stream)
    assert caught.value.code == "engine_unavailable"
    narrow.wait_until_ready()


class Verdict(pydantic.BaseModel):
    """What the model must say."""

    hero: Literal["Batman", "Robin"]


def test_parsed_answers_are_what_the_schema_says(service: Served) -> None:
    """Fails when a schema as the package writes it, from a pydantic model, is refused or not enforced."""
    # The penalty ends the line breaks between two JSON tokens, of which a model this small has never enough.
    asked: Any = {"model": "pocket", "messages": HELLO, "response_format": Verdict, "frequency_penalty": 2}
    with client(service) as own:
        parsed = own.chat.completions.parse(**asked, temperature=0, max_tokens=200)
        assert parsed.choices[0].message.parsed
        with own.chat.completions.stream(**asked, temperature=0, max_tokens=200) as stream:
            stream.until_done()
            assert stream.get_final_completion().choices[0].message.parsed
