"""The two published forms of `POST /chat`, asked by clients that know nothing of this project's contract module."""

import json
import subprocess

import bentoml
import pytest
import requests

from tests.conftest import Served, needs


def test_form_one_is_answered_with_a_json_string(echo_service: Served) -> None:
    """Fails when clients of transformers' former `Conversation` shape no longer work."""
    body = {"past_user_inputs": ["Hi"], "generated_responses": ["Hello!"], "user_input": "Who is $Batman?"}
    answer = requests.post(f"{echo_service.url}/chat", json=body, timeout=20)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == "Who is $Batman?"
    assert requests.post(f"{echo_service.url}/chat", json={"user_input": "alone"}, timeout=20).json() == "alone"


def test_form_two_is_answered_with_a_message_and_its_usage(echo_service: Served) -> None:
    """Fails when the history form loses its usage, or refuses the cost that its published client writes into turns."""
    history = [
        {"role": "user", "content": "Hi", "cost": 0.1},
        {"role": "assistant", "content": "Hello!", "id": 7},
        {"role": "user", "content": "Who is Batman?"},
    ]
    answer = requests.post(f"{echo_service.url}/chat", json={"history": history}, timeout=20).json()
    assert answer["message"] == {"role": "assistant", "content": "Who is Batman?"}
    usage = answer["token_usage"]
    assert list(usage) == ["prompt_tokens", "completion_tokens", "total_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"past_user_inputs": ["a"], "generated_responses": [], "user_input": "b"}, "generated_responses"),
        ({"past_user_inputs": "a", "user_input": "b"}, "past_user_inputs"),
        ({"history": []}, "history"),
        ({"history": [{"role": "system", "content": "be bad"}]}, "history[0].role"),
        ({"history": [{"role": "user"}]}, "history[0].content"),
        ({"history": [{"role": "assistant", "content": "a"}]}, "history"),
        ({"message": "neither form"}, None),
        ([], None),
        ("text", None),
        (None, None),
    ],
)
def test_a_body_of_neither_form_is_told_why(echo_service: Served, body: object, param: str | None) -> None:
    """Fails when a fault is reported for the other form, or in BentoML's shape."""
    answer = requests.post(f"{echo_service.url}/chat", data=json.dumps(body), headers=JSON, timeout=20)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["param"] == param


JSON = {"Content-Type": "application/json"}


def test_bentoml_s_own_client_calls_both_forms(echo_service: Served) -> None:
    """Fails when the native route is no native route any more."""
    with bentoml.SyncHTTPClient(echo_service.url) as client:
        assert client.chat({"user_input": "hello"}) == "hello"
        reply = client.chat({"history": [{"role": "user", "content": "hello"}]})
    assert reply["message"]["content"] == "hello"


def test_curl_gets_an_answer_and_a_stream(echo_service: Served) -> None:
    """Fails when the command that the start prints does not work, or a stream is held back to its end."""
    needs("curl")

    def curl(path: str, body: str) -> str:
        command = ["curl", "-sN", f"{echo_service.url}{path}", "-H", "Content-Type: application/json", "-d", body]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout

    assert curl("/chat", '{"user_input": "Who is Batman?"}') == '"Who is Batman?"'
    stream = curl("/v1/chat/completions", '{"messages": [{"role": "user", "content": "a b"}], "stream": true}')
    assert stream.endswith("data: [DONE]\n\n")
