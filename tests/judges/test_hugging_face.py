"""Hugging Face's InferenceClient, pointed at this service."""

import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from tests.conftest import Served

HELLO = [{"role": "user", "content": "hello there world"}]


def test_answers_and_streams(echo_service: Served) -> None:
    """Fails when the client that comes with the hub's own library cannot read us."""
    client = InferenceClient(base_url=f"{echo_service.url}/v1", api_key="none")
    whole = client.chat_completion(HELLO, model="echo", max_tokens=2, stop=["!"])
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("hello there", "length")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(client.chat.completions.create(HELLO, model="echo", stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "hello there world"


async def test_asynchronous_streams(echo_service: Served) -> None:
    """Fails when a stream reaches the asynchronous client in a form that only the other one reads."""
    async with AsyncInferenceClient(base_url=f"{echo_service.url}/v1", api_key="none") as client:
        stream = await client.chat_completion(HELLO, model="echo", stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "hello there world"


def test_a_refusal_says_why(echo_service: Served) -> None:
    """Fails when the client hides the service's words behind a status."""
    client = InferenceClient(base_url=f"{echo_service.url}/v1", api_key="none")
    with pytest.raises(HfHubHTTPError, match="temperature"):
        client.chat_completion(HELLO, model="echo", temperature=0.5)
