"""R2 and R10: whatever is sent, the answer is an error in OpenAI's shape, and never a fault of the service.

`PARLEY_SOAK=1` sends ten thousand inputs instead of a sample.
"""

import http.client
import json
import random
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from parley.contract import schema as schema_module
from parley.contract.limits import Limits, depth
from parley.contract.schema import SchemaFault, check_schema
from tests.conftest import Served
from tests.soak import amount

INPUTS = amount(600, 10_000)
COMPLETIONS = "/v1/chat/completions"
ROUTES = (COMPLETIONS, "/chat", "/tokenize")
JSON = "application/json"
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]

BROKEN = [
    b"",
    b"{",
    b"nope",
    b"NaN",
    b'{"user_input": NaN}',
    b'{"user_input": Infinity}',
    b'{"user_input": "\\ud800"}',
    b'{"user_input": "\xff\xfe"}',
    b'{"user_input": "\xed\xa0\x80"}',
    b"\xef\xbb\xbf{}",
    b"\xff\xfe{\x00}\x00",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'{"user_input": ' + b"9" * 5000 + b"}",
    b'{"user_input": 1e999}',
    b'{"user_input": "a", "user_input"',
    b"null",
    b"true",
    b"\x00" * 64,
    b"{'user_input': 'single'}",
    b'{"user_input": "a",}',
]
ODD_VALUES: list[Any] = [
    None, True, 0, -1, 2**31, 2**63, 2**64, -(2**64), 0.5, 1e308, "", "x", "\u0000", "\ue000" * 50, "<|im_end|>", [],
    {}, [[]], [None], [0], ["a"] * 50, {"a": {"b": {"c": 1}}}, [[[[[[[[]]]]]]]], {"type": "json_schema"}, {"": ""},
]  # fmt: skip
FIELDS = [
    "messages", "model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p",
    "top_k", "n", "stop", "seed", "frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias",
    "logprobs",
    "top_logprobs", "response_format", "user", "metadata", "store", "context_policy", "tools", "tool_choice",
    "parallel_tool_calls", "functions", "modalities", "chat_template", "user_input", "past_user_inputs",
    "generated_responses", "history", "prompt", "\u0000", "__proto__",
]  # fmt: skip


def is_openai_error(response: requests.Response) -> bool:
    error = response.json()["error"]
    strings = isinstance(error["message"], str) and isinstance(error["type"], str) and isinstance(error["code"], str)
    return list(error) == ["message", "type", "param", "code"] and strings and isinstance(error["param"], str | None)


def odd_body(rng: random.Random) -> Any:
    """A body that is nearly right: the three forms, with fields replaced, added, or turned inside out."""
    base: dict[str, Any] = rng.choice(
        [{"messages": HELLO}, {"user_input": "hi"}, {"history": HELLO}, {"prompt": "hi"}, {}]
    )
    body = {**base, **{rng.choice(FIELDS): rng.choice(ODD_VALUES) for _ in range(rng.randrange(4))}}
    if "messages" in body and rng.random() < 0.4:
        message = {rng.choice(["role", "content", "name", "tool_calls"]): rng.choice(ODD_VALUES) for _ in range(2)}
        body["messages"] = [{**HELLO[0], **message}] * rng.choice([1, 2, 2000])
    return rng.choice(ODD_VALUES) if rng.random() < 0.05 else body


def odd_request(rng: random.Random) -> tuple[str, str, bytes, str]:
    """Method, path, body and content type."""
    method = rng.choice(["POST"] * 8 + ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "BREW"])
    path = rng.choice(
        [*ROUTES * 6, "/", "/v1/models", "/v1/models/%00", "/v1/%2e%2e/chat", "//chat", "/docs.json", "/\u20ac"]
    )
    body = rng.choice(BROKEN) if rng.random() < 0.2 else json.dumps(odd_body(rng)).encode()
    kind = JSON if rng.random() < 0.9 else rng.choice(
        ["", "text/plain", "multipart/form-data", "application/vnd.bentoml+pickle", "application/json; charset=utf-16"]
    )  # fmt: skip
    return method, path, body, kind


def test_r02_no_input_is_the_service_s_fault(echo_service: Served) -> None:
    """Fails when a client can make the service fail, or get an error that its own library cannot read (R2)."""
    rng = random.Random(2)
    slowest = 0.0
    with requests.Session() as session:
        for _ in range(INPUTS):
            method, path, body, kind = request = odd_request(rng)
            began = time.monotonic()
            response = session.request(
                method, echo_service.url + path, data=body, headers={"Content-Type": kind}, timeout=30
            )
            slowest = max(slowest, time.monotonic() - began)
            assert response.status_code < 500, (request[:2], body[:300], response.text)
            if response.status_code >= 400 and method != "HEAD":
                assert is_openai_error(response), (request[:2], body[:300], response.text)
                assert "x-request-id" in response.headers or method == "BREW"
    print(f"\nR2: {INPUTS} inputs, no 5xx, slowest {slowest * 1000:.0f} ms")
    assert echo_service.readyz() == 200
    assert "Traceback" not in echo_service.log()


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("body", BROKEN, ids=lambda body: repr(body[:24]))
def test_r02_what_is_no_json_is_refused(echo_service: Served, path: str, body: bytes) -> None:
    """Fails when broken text gets through one parser and breaks another (R2)."""
    response = requests.post(echo_service.url + path, data=body, headers={"Content-Type": JSON}, timeout=20)
    assert response.status_code == 400
    assert is_openai_error(response)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("kind", "encoding"),
    [
        (None, None),
        ("text/plain", None),
        ("multipart/form-data", None),
        ("multipart/form-data; boundary=x", None),
        ("application/x-www-form-urlencoded", None),
        ("application/vnd.bentoml+pickle", None),
        (f"{JSON}; charset=utf-16", None),
        (JSON, "gzip"),
    ],
)
def test_r02_r18_another_kind_of_body_is_refused(echo_service: Served, path: str, kind: str, encoding: str) -> None:
    """Fails when a form without a boundary is a 500, or a pickle is looked at (R2, R18)."""
    headers = {"Content-Type": kind, "Content-Encoding": encoding}
    response = requests.post(echo_service.url + path, data=b"--x\r\n\r\nhi", headers=headers, timeout=20)
    assert response.status_code == 415
    assert is_openai_error(response)
    assert ("compressed" in response.json()["error"]["message"]) == (encoding == "gzip")


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
@pytest.mark.parametrize("path", ["/chat", COMPLETIONS, "/tokenize"])
def test_r02_other_methods_are_told_which_there_are(echo_service: Served, method: str, path: str) -> None:
    """Fails when BentoML's and FastAPI's routes refuse a method differently (R2)."""
    response = requests.request(method, echo_service.url + path, timeout=20)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert is_openai_error(response)
    assert requests.head(echo_service.url + path, timeout=20).status_code == 405


@pytest.mark.parametrize(
    "path", ["/chat/", "/nowhere", "/v1", "/v1/models/", "//", "/static_content/../service.py", "/%00"]
)
def test_r02_an_unknown_path_is_a_plain_404(echo_service: Served, path: str) -> None:
    """Fails when a slash too many redirects to a host that the client made up (R2)."""
    host, port = urlsplit(echo_service.url).netloc.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    connection.request("GET", path, headers={"Host": "evil.example"})
    response = connection.getresponse()
    assert (response.status, response.getheader("location")) == (404, None)
    assert json.loads(response.read())["error"]["code"] in ("not_found", "model_not_found")
    connection.close()


@pytest.mark.parametrize(
    "request_line",
    [
        b"BREW /chat HTTP/1.1",
        b"GET",
        b"GET /chat HTTP/9.9",
        b"\x16\x03\x01\x02\x00",
        b"GET /\x00 HTTP/1.1",
        b"SSH-2.0-x",
    ],
)
def test_r02_what_is_no_request_is_told_so_in_the_same_shape(echo_service: Served, request_line: bytes) -> None:
    """Fails when uvicorn answers in plain text what it cannot read (R2)."""
    host, port = urlsplit(echo_service.url).netloc.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request_line + b"\r\nHost: x\r\n\r\n")
        head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert list(json.loads(body)["error"]) == ["message", "type", "param", "code"]


def test_a_websocket_is_no_way_in(echo_service: Served) -> None:
    """Fails when an upgrade goes around everything that stands before the routes."""
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    response = requests.get(f"{echo_service.url}/v1/models", headers={**upgrade, **key}, timeout=20)
    assert response.status_code == 404
    assert is_openai_error(response)


OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\nUpgrade: h2c\r\n"
"""What java.net.http.HttpClient sends with every request that is not encrypted."""


def offering(framing: bytes, content: bytes) -> bytes:
    return b"POST /chat HTTP/1.1\r\n" + OFFER + b"Host: x\r\nContent-Type: application/json\r\n" + framing + content


SIZED = offering(b"Content-Length: 20\r\n\r\n", b'{"user_input": "hi"}')
CHUNKED = offering(b"Transfer-Encoding: chunked\r\n\r\n", b'14\r\n{"user_input": "hi"}\r\n0\r\n\r\n')


@pytest.mark.parametrize("request_bytes", [SIZED, CHUNKED], ids=["sized", "chunked"])
@pytest.mark.parametrize("cut", [b"", b'{"user', b"grade: h2c", b"HTTP2-S", b"\n\r\n"], ids=repr)
def test_an_offer_of_http_2_is_passed_over(echo_service: Served, request_bytes: bytes, cut: bytes) -> None:
    """Fails when Java's client gets an error for each request, its body lost, and another one for the body."""
    at = request_bytes.index(cut) if cut else 0
    host, port = urlsplit(echo_service.url).netloc.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):
            connection.sendall(request_bytes[:at])
            time.sleep(0.05 if at else 0)
            connection.sendall(request_bytes[at:])
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert (response.status, response.read()) == (200, b'"hi"')


def test_requests_that_offer_http_2_may_follow_one_another(echo_service: Served) -> None:
    """Fails when of several requests in one packet the first to offer another protocol is the last to be answered."""
    host, port = urlsplit(echo_service.url).netloc.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(SIZED + CHUNKED + SIZED.replace(OFFER, b"Connection: close\r\n"))
        told = b"".join(iter(lambda: connection.recv(65536), b""))
    assert told.count(b"HTTP/1.1 200 OK") == told.count(b'"hi"') == 3


def test_a_tunnel_is_no_way_in(echo_service: Served) -> None:
    """Fails when a `CONNECT` that offers another protocol keeps the service busy for ever, or opens anything."""
    host, port = urlsplit(echo_service.url).netloc.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n" + OFFER + b"\r\n")
        assert 400 <= int(connection.recv(65536).split()[1]) < 500
    assert echo_service.readyz() == 200


def chain(levels: int) -> dict[str, Any]:
    """A schema of this many levels."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels // 2):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def at(limit: int) -> Iterator[tuple[str, Any]]:
    """Each parameter that has a limit, at this distance from it: 0 is at the limit, 1 beyond it."""
    limits = Limits()
    yield "n", limits.n + limit
    yield "max_tokens", limits.max_tokens + limit
    yield "max_completion_tokens", limits.max_tokens + limit
    yield "stop", [f"stop{i}" for i in range(limits.stop + limit)]
    yield "stop", "s" * (limits.stop_chars + limit)
    yield "messages", HELLO * (limits.messages + limit)
    yield "messages", [{"role": "user", "content": "a" * (limits.message_chars + limit)}]


def completions(served: Served, **body: Any) -> requests.Response:
    return requests.post(served.url + COMPLETIONS, json={"messages": HELLO, "max_tokens": 1, **body}, timeout=30)


@pytest.mark.parametrize(("field", "value"), at(0), ids=lambda value: str(value)[:12])
def test_r10_a_parameter_at_its_limit_is_served(echo_service: Served, field: str, value: Any) -> None:
    """Fails when a limit is one less than it says (R10)."""
    response = completions(echo_service, **{field: value, "context_policy": "keep_recent"})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(("field", "value"), at(1), ids=lambda value: str(value)[:12])
def test_r10_a_parameter_beyond_its_limit_is_refused_by_its_name(echo_service: Served, field: str, value: Any) -> None:
    """Fails when a limit holds nobody, or is found only after the work was done (R10)."""
    began = time.monotonic()
    error = completions(echo_service, **{field: value}).json()["error"]
    print(f"\nR10: {field} refused in {(time.monotonic() - began) * 1000:.1f} ms")
    assert error["code"] == "invalid_value"
    assert str(error["param"]).partition("[")[0] == field


@pytest.mark.parametrize("field", ["n", "max_tokens", "max_completion_tokens", "top_logprobs", "top_k", "seed"])
@pytest.mark.parametrize("value", [2**64, 2**64 - 1, -(2**64), 10**18, -2, 0.5, "1", True, [], {}])
def test_r10_numbers_out_of_all_bounds_are_refused(echo_service: Served, field: str, value: Any) -> None:
    """Fails when a huge number overflows in the engine, where it would end everybody's answers (R10)."""
    more = {"logprobs": True} if field == "top_logprobs" else {}
    response = completions(echo_service, **{field: value}, **more)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field


def test_r02_a_body_of_both_forms_is_refused(echo_service: Served) -> None:
    """R2. Fails when a part of a request is ignored without a word, against our own document."""
    both = {"user_input": "one", "history": [{"role": "user", "content": "two"}]}
    refused = requests.post(f"{echo_service.url}/chat", json=both, timeout=20)
    assert refused.status_code == 400
    assert is_openai_error(refused)
    for field, said in (("history", "one"), ("user_input", {"role": "assistant", "content": "two"})):
        answer = requests.post(f"{echo_service.url}/chat", json={**both, field: None}, timeout=20).json()
        assert (answer if isinstance(answer, str) else answer["message"]) == said


@pytest.mark.parametrize("value", [0, 0.0, "", True, "false", []])
def test_r02_what_is_not_quite_false_is_refused(echo_service: Served, value: Any) -> None:
    """R2. Fails when a number is taken for a boolean, against our own document."""
    response = completions(echo_service, store=value)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "store")


def test_r10_large_schemas_and_biases_are_refused_before_the_engine_sees_them(echo_service: Served) -> None:
    """Fails when the time to compile a grammar is the client's to choose (R10)."""
    limits = Limits()

    def refusal(**body: Any) -> tuple[str, str]:
        error = completions(echo_service, **body).json()["error"]
        return error["param"], error["code"]

    def wanted(schema: dict[str, Any]) -> dict[str, Any]:
        return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}

    bias = {str(token): 1 for token in range(limits.logit_bias + 1)}
    assert refusal(logit_bias=bias) == ("logit_bias", "invalid_value")
    bias.popitem()
    assert refusal(logit_bias=bias) == ("logit_bias", "unsupported_parameter")
    assert refusal(response_format=wanted(chain(limits.schema_depth + 2))) == ("response_format", "invalid_value")
    assert refusal(response_format=wanted(chain(limits.schema_depth - 2))) == (
        "response_format",
        "unsupported_parameter",
    )
    large = {"enum": ["x" * limits.schema_bytes]}
    assert refusal(response_format=wanted(large)) == ("response_format", "invalid_value")


@pytest.mark.parametrize(
    ("value", "levels"), [(1, 0), ([], 1), ({"a": [1, {"b": {}}]}, 4), (json.loads("[" * 900 + "]" * 900), 900)]
)
def test_depth_counts_lists_and_objects(value: Any, levels: int) -> None:
    """Fails when the nesting limit is off by one, or a deep body overflows the stack."""
    assert depth(value) == levels


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": [1] * 200_000}]},
        {"messages": HELLO, **{f"k{number}": 1 for number in range(60_000)}},
        {"messages": HELLO, "metadata": {f"k{number}": 1 for number in range(60_000)}},
    ],
    ids=["parts", "fields", "metadata"],
)
@pytest.mark.parametrize("path", [COMPLETIONS, "/tokenize"])
def test_r02_many_values_are_refused_before_each_is_looked_at(echo_service: Served, path: str, body: Any) -> None:
    """Fails when one body of the largest size costs seconds and a gigabyte, an error for each of its values (R2)."""
    response = requests.post(echo_service.url + path, json=body, timeout=20)
    assert response.status_code == 400
    assert "too many values; 20000 are allowed" in response.json()["error"]["message"]


def test_a_schema_is_walked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when the largest schema stops everybody's answers, as each of its parts is followed from each other."""
    steps: list[str] = []
    same_place = schema_module._same_place
    monkeypatch.setattr(
        schema_module, "_same_place", lambda path, *rest: (steps.append(path), same_place(path, *rest))[1]
    )
    wide = {"anyOf": [{}] * 2000, "$defs": {str(number): {"$ref": "#"} for number in range(380)}}
    check_schema(wide)
    assert len(steps) < 2 * 2400


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False},
        {"$defs": {"x": {"type": "object", "properties": {"next": {"$ref": "#/$defs/x"}}}}, "$ref": "#/$defs/x"},
        {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 1, "maxItems": 3},
        {"anyOf": [{"type": "string", "maxLength": 5}, {"type": "null"}], "title": "t", "description": "d"},
        {"type": ["string", "null"]},
        {"enum": ["a", 1, None]},
        {"const": {"a": [1]}},
    ],
)
def test_a_schema_that_can_be_enforced_is_taken(schema: dict[str, Any]) -> None:
    """Fails when what pydantic and OpenAI's strict mode write is refused."""
    check_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "bogus"}, {"type": []}, {"type": {}}, {"$ref": "#"}, {"$ref": "#/$defs/none"}, {"$ref": "http://x/y"},
        {"anyOf": [{"$ref": "#"}]}, {"$defs": {"x": {"$ref": "#/$defs/x"}}, "$ref": "#/$defs/x"},
        {"$defs": {"x": {"anyOf": [{"$ref": "#/$defs/y"}]}, "y": {"$ref": "#/$defs/x"}}, "type": "string"},
        {"anyOf": []}, {"enum": []}, {"type": "array", "minItems": 5, "maxItems": 2},
        {"type": "string", "minLength": -1}, {"type": "string", "maxLength": 10**9}, {"type": "string", "pattern": "("},
        {"type": "string", "format": "date"}, {"not": {}}, {"type": "number", "minimum": 1},
        {"type": "integer", "minimum": 1e30}, {"type": "integer", "minimum": 0.5},
        {"type": "integer", "minimum": 2, "maximum": 1},
        {"type": "object", "required": ["a"]}, {"type": "integer", "enum": ["a"]}, {"items": False}, {"properties": []},
        {"anyOf": [{"type": "string", "maxLength": 900 + i} for i in range(5)]},
        {"anyOf": [{"type": "array", "maxItems": 999, "items": {"const": i}} for i in range(11)]},
        {"type": "array", "minItems": None}, {"type": "array", "maxItems": None}, {"type": "integer", "minimum": None},
        {"type": "string", "minLength": None}, {"type": "string", "minLength": 1, "maxLength": None},
        {"type": "object", "properties": {"a": True}}, {"type": "string", "anyOf": [{"const": "a"}]}, {"required": "a"},
    ],
    ids=lambda schema: json.dumps(schema)[:40],
)  # fmt: skip
def test_r03_r10_a_schema_that_cannot_be_enforced_is_refused(schema: dict[str, Any]) -> None:
    """Fails when a schema gets to the grammar engine that raises, hangs, crashes or is skipped there (R3, R10)."""
    with pytest.raises(SchemaFault):
        check_schema(schema)
