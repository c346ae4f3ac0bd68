"""The API as its clients see it: OpenAI's shapes on every route, and what this service adds to them."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import requests

from parley.api.chat import honoured
from parley.api.completions import sampling
from parley.contract.openai import ChatCompletionRequest
from parley.engine.runner import EVERY_TOKEN, ModelInfo, Sampling
from tests.conftest import POCKET, Served, serve
from tests.scrape import scrape, total

COMPLETIONS = "/v1/chat/completions"
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hello there world"}]


def ask(
    served: Served, path: str = COMPLETIONS, headers: dict[str, str] | None = None, **body: Any
) -> requests.Response:
    if path == COMPLETIONS:
        body = {"messages": HELLO, **body}
    return requests.post(served.url + path, json=body, headers=headers, timeout=60)


def said(words: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": words}]


def frames(response: requests.Response) -> list[Any]:
    """The data of a stream, parsed; its last frame is `[DONE]`, or the stream is not whole."""
    *events, done, rest = response.content.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events if not event.startswith(":")]


def param(response: requests.Response, status: int = 400) -> str:
    """The parameter that an error names."""
    error = response.json()["error"]
    assert response.status_code == status, error
    assert list(error) == ["message", "type", "param", "code"]
    return str(error["param"])


def test_openai_package_reads_answers_and_streams(echo_service: Served) -> None:
    """Fails when a shape is not OpenAI's: the package parses strictly what it gets."""
    with openai.OpenAI(base_url=f"{echo_service.url}/v1", api_key="none") as client:
        whole = client.chat.completions.create(model="echo", messages=HELLO, n=2)
        assert [choice.message.content for choice in whole.choices] == ["hello there world"] * 2
        assert whole.usage
        assert whole.usage.completion_tokens == 2 * whole.usage.prompt_tokens
        stream = client.chat.completions.create(
            model="echo", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "hello there world"
        assert chunks[-1].usage
        assert chunks[-1].choices == []
        assert [model.id for model in client.models.list()] == [client.models.retrieve("echo").id]
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="echo", messages=HELLO, logit_bias={"5": 1})
        assert (caught.value.param, caught.value.code) == ("logit_bias", "unsupported_parameter")


async def test_openai_package_reads_them_asynchronously(echo_service: Served) -> None:
    """Fails when a stream is buffered, or ends without its last event."""
    async with openai.AsyncOpenAI(base_url=f"{echo_service.url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(model="echo", messages=HELLO, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(pieces) == "hello there world"
    assert len([piece for piece in pieces if piece]) > 1


def test_several_answers_are_streamed_beside_one_another(echo_service: Served) -> None:
    """Fails when an answer's pieces go under another's index, or one of them does not end."""
    chunks = frames(ask(echo_service, n=3, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1]["choices"] == []
    choices = [chunk["choices"][0] for chunk in chunks[:-1]]
    for index in range(3):
        own = [choice for choice in choices if choice["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in own) == "hello there world"
        assert [choice["finish_reason"] for choice in own if choice["finish_reason"]] == ["stop"]
    usage = chunks[-1]["usage"]
    assert usage["completion_tokens"] == 3 * usage["prompt_tokens"]


def test_logprobs_are_those_of_the_text(echo_service: Served) -> None:
    """Fails when a stop string, or a half of one, leaks through the tokens of the log-probabilities."""
    choice = ask(echo_service, logprobs=True, stop=["re wo"]).json()["choices"][0]
    assert choice["message"]["content"] == "hello the"
    tokens = choice["logprobs"]["content"]
    assert b"".join(bytes(token["bytes"]) for token in tokens) == b"hello the"
    chunks = frames(ask(echo_service, logprobs=True, stop=["re wo"], stream=True))
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert [token for logprobs in streamed for token in logprobs["content"]] == tokens


def test_logprobs_are_the_model_s_own(service: Served) -> None:
    """Fails when a temperature changes what is told, or a token's text is not the answer's."""
    cold, warm = (
        ask(service, logprobs=True, max_tokens=1, temperature=temperature, seed=1).json()["choices"][0]
        for temperature in (0, 0.01)
    )
    assert cold["logprobs"]["content"] == warm["logprobs"]["content"]
    assert cold["logprobs"]["content"][0]["logprob"] < 0
    longer = ask(service, logprobs=True, max_tokens=8).json()["choices"][0]
    assert "".join(token["token"] for token in longer["logprobs"]["content"]) == longer["message"]["content"]


@pytest.fixture(scope="module")
def torch_service() -> Iterator[Served]:
    """The embedded model on the engine that honours most."""
    with serve({"PARLEY_ENGINE": "transformers"}) as served:
        yield served


def test_likeliest_tokens_and_biases_are_honoured(torch_service: Served) -> None:
    """Fails when alternatives are not told with their tokens, or a bias does not decide, or names no token."""
    (model,) = requests.get(f"{torch_service.url}/v1/models", timeout=5).json()["data"]
    assert {"logprobs", "top_logprobs", "logit_bias"} <= set(model["parameters"])
    asked = {"logprobs": True, "top_logprobs": 2, "temperature": 0, "max_tokens": 5}
    plain = ask(torch_service, **asked).json()["choices"][0]
    for token in plain["logprobs"]["content"]:
        first, second = token["top_logprobs"]
        assert first == {key: token[key] for key in ("token", "logprob", "bytes")}
        assert second["logprob"] <= first["logprob"]
    chunks = frames(ask(torch_service, stream=True, **asked))
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    again = [token for logprobs in streamed for token in logprobs["content"]]
    assert [told["token"] for told in again] == [told["token"] for told in plain["logprobs"]["content"]]
    assert [len(told["top_logprobs"]) for told in again] == [2] * 5
    (wanted,) = ask(torch_service, "/tokenize", prompt="Z").json()["tokens"][-1:]
    biased = ask(torch_service, logit_bias={str(wanted): 100}, temperature=0, max_tokens=5).json()["choices"][0]
    assert biased["message"]["content"] == "Z" * 5
    beyond = ask(torch_service, logit_bias={"999999999": 1})
    assert (param(beyond), beyond.json()["error"]["code"]) == ("logit_bias", "invalid_value")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logit_bias", {"5": 1}),
        ("response_format", {"type": "json_object"}),
        ("temperature", 0.5),
        ("frequency_penalty", 0.5),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("chat_template", "{{ messages }}"),
        ("audio", {}),
        ("made_up", 1),
    ],
)
def test_what_the_engine_cannot_do_is_refused_by_its_name(echo_service: Served, field: str, value: Any) -> None:
    """Fails when a parameter is ignored without a word, as most servers do."""
    assert param(ask(echo_service, **{field: value})) == field


@pytest.mark.parametrize(
    "harmless",
    [
        {"tools": None, "n": 1, "logit_bias": {}, "response_format": {"type": "text"}, "presence_penalty": 0},
        {"logprobs": False, "user": "u", "metadata": {"a": "b"}, "store": False, "seed": None},
        {"messages": [{"role": "assistant", "content": "a", "refusal": None, "tool_calls": None}, *HELLO]},
        {"top_k": 0, "repetition_penalty": 1.0},
        {"top_k": -1, "repetition_penalty": 1},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hello there world"}]}]},
    ],
)
def test_what_changes_nothing_is_not_refused(echo_service: Served, harmless: dict[str, Any]) -> None:
    """Fails when a client that writes its defaults out is turned away."""
    assert ask(echo_service, **harmless).json()["choices"][0]["message"]["content"] == "hello there world"


def test_no_limit_is_a_wish_where_the_model_may_have_one() -> None:
    """Fails when a model's own `top_k` or penalty holds for who wants none, or asking for none turns beams off."""
    asked = sampling(ChatCompletionRequest.model_validate({"messages": HELLO, "top_k": -1, "repetition_penalty": 1}))
    knows, does_not = (ModelInfo("e", "", "cpu", "", 9, names) for names in (["top_k", "repetition_penalty"], []))
    assert honoured(asked, knows) == Sampling(top_k=EVERY_TOKEN, repetition_penalty=1.0)
    assert honoured(asked, does_not) == Sampling()
    assert [asked.draws(default) for default in (False, True)] == [False, True]
    assert Sampling(top_k=50).draws(default=False)


def test_no_obfuscation_may_be_asked_for(echo_service: Served) -> None:
    """Fails when a client that switches OpenAI's padding off is refused, or one that wants it gets none unawares."""
    off, on = (ask(echo_service, stream=True, stream_options={"include_obfuscation": value}) for value in (False, True))
    assert frames(off)
    assert param(on) == "stream_options.include_obfuscation"


def test_models_tell_what_is_honoured(echo_service: Served) -> None:
    """Fails when a client has to find out by trying."""
    (model,) = requests.get(f"{echo_service.url}/v1/models", timeout=5).json()["data"]
    assert model == requests.get(f"{echo_service.url}/v1/models/echo", timeout=5).json()
    assert {"max_tokens", "stop", "logprobs", "n", "context_policy"} <= set(model["parameters"])
    assert "logit_bias" not in model["parameters"]
    assert (model["engine"], model["context_length"]) == ("echo", 8192)
    assert param(requests.get(f"{echo_service.url}/v1/models/other", timeout=5), 404) == "model"


def test_the_model_is_called_as_it_is_set() -> None:
    """Fails when a client that asks for the model by the name that it was given is told that there is none."""
    with serve({"PARLEY_ENGINE": "echo", "PARLEY_SERVED_MODEL_NAME": "our/assistant"}) as served:
        (model,) = requests.get(f"{served.url}/v1/models", timeout=5).json()["data"]
        assert model["id"] == ask(served, model="our/assistant", messages=HELLO).json()["model"] == "our/assistant"
        assert param(ask(served, model="echo", messages=HELLO), 404) == "model"


def test_an_answer_is_as_long_as_the_request_else_the_model_else_the_setting_says(service: Served) -> None:
    """Fails when the setting comes before the model's generation config, or does not hold where that says nothing."""
    endless = {"type": "array", "items": {"type": "integer"}, "minItems": 400, "maxItems": 400}
    asked = {"response_format": {"type": "json_schema", "json_schema": {"name": "endless", "schema": endless}}}
    stated = json.loads((POCKET / "generation_config.json").read_text())["max_new_tokens"]
    for limit, tokens in (({}, stated), ({"max_tokens": stated + 5}, stated + 5)):
        answer = ask(service, **asked, **limit).json()
        assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", tokens)
    with serve({"PARLEY_ENGINE": "echo", "PARLEY_MAX_TOKENS": "2"}) as mute:
        assert ask(mute).json()["choices"][0]["message"]["content"] == "hello there"
        assert ask(mute, max_tokens=3).json()["choices"][0]["message"]["content"] == "hello there world"


def test_tokens_can_be_counted_before_they_are_sent(service: Served) -> None:
    """Fails when a count is not the prompt's: without the template around it, or with something dropped."""
    counted = ask(service, "/tokenize", messages=HELLO).json()
    used = ask(service, max_tokens=1).json()["usage"]
    assert counted["count"] == len(counted["tokens"]) == used["prompt_tokens"]
    assert ask(service, "/tokenize", prompt="hello").json()["count"] < counted["count"]
    assert ask(service, "/tokenize", prompt="word " * 5000).json()["count"] > counted["max_model_len"]
    assert param(ask(service, "/tokenize")) == "messages"


def test_the_context_policy_is_the_request_s_and_is_reported(service: Served) -> None:
    """Fails when a part of a conversation is dropped and nobody is told, or the wrong part."""
    turns = [{"role": role, "content": "many words " * 60} for _ in range(8) for role in ("user", "assistant")]
    long = [*turns, {"role": "user", "content": "and now?"}]
    refused = ask(service, messages=long, headers={"X-Context-Policy": "error"})
    assert param(refused) == "messages"
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    shortened = ask(service, messages=long, max_tokens=4, headers={"X-Context-Policy": "drop_oldest_turns"})
    details = shortened.json()["usage"]["prompt_tokens_details"]
    assert int(shortened.headers["x-context-dropped-messages"]) == details["dropped_messages"] > 0
    streamed = ask(service, messages=long, max_tokens=4, context_policy="keep_recent", stream=True)
    assert int(streamed.headers["x-context-dropped-tokens"]) > 0
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    counted = ask(service, messages=long, max_tokens=4, context_policy="drop_oldest_turns", **usage)
    streamed_details = frames(counted)[-1]["usage"]["prompt_tokens_details"]
    assert int(counted.headers["x-context-dropped-messages"]) == streamed_details["dropped_messages"] > 0
    assert streamed_details["dropped_tokens"] == details["dropped_tokens"]
    native = ask(service, "/chat", history=long, headers={"X-Context-Policy": "drop_oldest_turns"})
    assert int(native.headers["x-context-dropped-messages"]) > 0
    assert param(ask(service, headers={"X-Context-Policy": "guess"})) == "x-context-policy"


def test_json_is_enforced_while_decoding(service: Served) -> None:
    """Fails when a schema is a wish: a model this small would never keep to it by itself."""
    schema = {"type": "object", "properties": {"hero": {"enum": ["Batman", "Robin"]}}, "required": ["hero"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "hero", "schema": schema}}
    for seed in range(4):
        answer = ask(service, response_format=wanted, seed=seed, temperature=1.5, max_tokens=300).json()["choices"][0]
        assert answer["finish_reason"] == "stop"
        assert json.loads(answer["message"]["content"])["hero"] in ("Batman", "Robin")
    itself = {"type": "json_schema", "json_schema": {"name": "hero", "schema": {"$ref": "#"}}}
    assert param(ask(service, response_format=itself)) == "response_format.json_schema.schema"


def test_answers_of_one_request_differ_and_a_seed_repeats_them(service: Served) -> None:
    """Fails when all `n` answers are drawn with the same random numbers, or with any."""

    def texts(seed: int) -> list[str]:
        choices = ask(
            service, messages=said("Tell me about a hero."), n=3, seed=seed, temperature=2, max_tokens=30
        ).json()["choices"]
        return [choice["message"]["content"] for choice in choices]

    assert texts(7) == texts(7)
    assert len(set(texts(7))) > 1


def test_a_request_id_is_echoed_or_made(echo_service: Served) -> None:
    """Fails when an answer cannot be found in the log, or a made-up id can break it."""
    assert ask(echo_service, headers={"x-request-id": "my-id_1"}).headers["x-request-id"] == "my-id_1"
    made = ask(echo_service, headers={"x-request-id": "two words"}).headers["x-request-id"]
    assert len(made) == 32
    assert requests.get(f"{echo_service.url}/nowhere", timeout=5).headers["x-request-id"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_same_idempotency_key_gives_the_same_answer(echo_service: Served, stream: bool) -> None:
    """Fails when a retry generates again, or gets the answer to another question."""
    headers = {"Idempotency-Key": f"key-{stream}"}
    first = ask(echo_service, stream=stream, headers=headers)
    again = ask(echo_service, stream=stream, headers=headers)
    assert again.content == first.content  # its id included
    assert (first.headers.get("idempotent-replayed"), again.headers["idempotent-replayed"]) == (None, "true")
    assert param(ask(echo_service, messages=said("other"), headers=headers), 409) == "idempotency-key"
    assert param(ask(echo_service, headers={"Idempotency-Key": "x" * 256})) == "idempotency-key"
    refused = ask(echo_service, n=0, headers={"Idempotency-Key": f"bad-{stream}"})
    assert refused.status_code == 400
    assert "idempotent-replayed" not in ask(echo_service, headers={"Idempotency-Key": f"bad-{stream}"}).headers


def test_a_retry_follows_the_answer_that_a_cut_connection_left_behind(echo_service: Served) -> None:
    """Fails when the retry of a broken stream starts from nothing, or two at once are generated twice."""
    body = {"messages": said("slow " + "word " * 20), "stream": True}
    headers = {"Idempotency-Key": "cut"}
    with requests.post(echo_service.url + COMPLETIONS, json=body, headers=headers, stream=True, timeout=20) as response:
        begun = next(response.iter_content(None))
    answers: list[bytes] = []
    readers = [
        threading.Thread(target=lambda: answers.append(ask(echo_service, headers=headers, **body).content))
        for _ in range(3)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert len(set(answers)) == 1
    assert answers[0].startswith(begun)
    assert answers[0].endswith(b"data: [DONE]\n\n")


def generated(served: Served) -> float:
    """Tokens of all answers so far."""
    return total(scrape(served), "vllm:generation_tokens_total")


def test_a_retry_joins_the_answer_that_its_client_could_not_wait_for(echo_service: Served) -> None:
    """Fails when each try of a client with a short timeout starts from nothing, and none ever gets an answer."""
    body = {"messages": said("slow " + "word " * 40)}
    key = {"Idempotency-Key": "impatient"}
    before = generated(echo_service)
    for header in ("x-stainless-read-timeout", "X-Request-Timeout"):
        late = ask(echo_service, headers={**key, header: "0.3"}, **body)
        assert late.json()["error"]["code"] == "deadline_exceeded"
    whole = ask(echo_service, headers={**key, "X-Request-Timeout": "20"}, **body)
    assert whole.headers["idempotent-replayed"] == "true"
    assert whole.json()["choices"][0]["message"]["content"].count("word") == 40
    assert generated(echo_service) - before == whole.json()["usage"]["completion_tokens"]
    assert param(ask(echo_service, headers={**key, "X-Request-Timeout": "soon"}, **body)) == "x-request-timeout"


def test_a_fault_in_a_list_of_stop_strings_is_told_of_its_item(echo_service: Served) -> None:
    """Fails when a client concludes from the error that a list is not allowed."""
    for faulty in ("", 5):
        response = ask(echo_service, stop=["a", faulty])
        assert param(response) == "stop[1]", response.text
    assert param(ask(echo_service, stop=5)) == "stop"
    assert param(ask(echo_service, stop="")) == "stop"


def test_null_is_nothing_in_either_form(echo_service: Served) -> None:
    """Fails when a client whose serializer writes null for an empty list is refused."""
    body = {"user_input": "hi", "past_user_inputs": None, "generated_responses": None}
    assert ask(echo_service, "/chat", **body).json() == "hi"


def test_a_client_s_deadline_ends_what_nobody_waits_for(echo_service: Served) -> None:
    """Fails when an answer is made for a client that has given up."""
    slow = said("slow " + "word " * 100)
    for header in ("X-Request-Timeout", "x-stainless-read-timeout"):
        late = ask(echo_service, messages=slow, headers={header: "0.4"})
        assert param(late, 504) == "None"
        assert late.json()["error"]["code"] == "deadline_exceeded"
    streamed = ask(echo_service, messages=said("slow one two"), stream=True, headers={"X-Request-Timeout": "5"})
    assert frames(streamed)
    assert param(ask(echo_service, headers={"X-Request-Timeout": "-1"})) == "x-request-timeout"
    assert requests.get(f"{echo_service.url}/readyz", timeout=5).json()["running"] == 0


def test_an_answer_past_the_time_limit_ends_with_a_reason() -> None:
    """Fails when an endless answer holds its place for ever, is cut without a word, or tells what nobody counted."""
    with serve({"PARLEY_ENGINE": "echo", "PARLEY_ANSWER_TIMEOUT": "0.5"}) as served:
        answer = ask(served, messages=said("slow " + "word " * 100)).json()
        choice = answer["choices"][0]
        assert choice["finish_reason"] == "length"
        assert "cached_tokens" not in answer["usage"]["prompt_tokens_details"]
        assert 0 < choice["message"]["content"].count("word") < 100
        last = frames(ask(served, messages=said("slow " + "word " * 100), stream=True))[-1]
        assert last["choices"][0]["finish_reason"] == "length"
        assert requests.get(f"{served.url}/readyz", timeout=5).json()["running"] == 0


def test_the_docs_page_runs_nothing_but_its_own(echo_service: Served) -> None:
    """Fails when the page can be framed, or loads from another host."""
    page = requests.get(f"{echo_service.url}/docs", timeout=5)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "'unsafe-inline'" not in policy.split("style-src")[0]
    assert page.headers["x-frame-options"] == "DENY"
    assert "http" not in page.text.split("<body>")[1].replace("window.location", "")
    listed = requests.get(f"{echo_service.url}/docs.json", timeout=5).json()["paths"]
    assert {"/", "/chat", COMPLETIONS, "/v1/models", "/tokenize"} <= set(listed)
