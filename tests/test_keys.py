"""R13: every route asks for a key but those that say whether the service is up and how it is used."""

import hashlib
import http.client
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest
import requests

from parley.api.keys import Budget, Key, KeyEntry, load_keys
from parley.contract.errors import ErrorCode, ParleyError
from tests.conftest import ROOT, Served, clean_environment, free_port, serve

COMPLETIONS = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}
SLOW = {"messages": [{"role": "user", "content": "slow " + "word " * 40}]}
ORIGIN = "https://chat.example.com"

OPEN = {"/", "/livez", "/healthz", "/readyz", "/docs", "/docs.json", "/static_content"}
CLOSED = {"/chat", "/schema.json", "/metrics", "/tokenize", COMPLETIONS, "/v1/models", "/v1/models/{model:path}"}
"""The route inventory. A new route belongs into one of the two, and `OPEN` needs a reason."""
POSTED = {"/chat", "/tokenize", COMPLETIONS}
"""Those of them that take POST only."""

KEYS = """
[[keys]]
name = "plain"
sha256 = "{plain}"

[[keys]]
name = "requests"
sha256 = "{requests}"
requests_per_minute = 3

[[keys]]
name = "once"
sha256 = "{once}"
requests_per_minute = 1

[[keys]]
name = "tokens"
sha256 = "{tokens}"
tokens_per_minute = 10

[[keys]]
name = "streams"
sha256 = "{streams}"
concurrent_streams = 2
"""


def secret(name: str) -> str:
    return f"parley-test-{name}"


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret(name)}"}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service with keys, and with pages of one other origin."""
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    names = ("plain", "requests", "once", "tokens", "streams")
    path.write_text(KEYS.format(**{name: hashlib.sha256(secret(name).encode()).hexdigest() for name in names}))
    with serve({"PARLEY_ENGINE": "echo", "PARLEY_KEYS_FILE": str(path), "PARLEY_CORS_ORIGINS": ORIGIN}) as served:
        yield served


def inventory() -> set[str]:
    """Every route of the service, from the application that BentoML serves."""
    code = """
import service
def walk(routes):
    for route in routes:
        inner = getattr(route, "original_router", route)
        if getattr(route, "path", None):
            print(route.path)
        if type(route).__name__ != "Mount":
            walk(getattr(inner, "routes", None) or [])
walk(service.service.to_asgi(is_main=True).routes)
"""
    environment = clean_environment({"PARLEY_ENGINE": "echo"})
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_r13_every_route_is_on_one_of_the_two_lists(keyed: Served) -> None:
    """Fails when a route is added, by us or by a new version of BentoML, that nobody has decided about (R13)."""
    assert inventory() == OPEN | CLOSED
    for route in OPEN:
        path = "/static_content/swagger-ui.css" if route == "/static_content" else route
        assert requests.get(keyed.url + path, timeout=10).status_code == 200, path
    for route in CLOSED:
        path = route.replace("{model:path}", "echo")
        for method in ("GET", "POST", "HEAD", "OPTIONS", "DELETE"):
            assert requests.request(method, keyed.url + path, timeout=10).status_code == 401, (method, path)
        status = 405 if route in POSTED else 200
        assert requests.get(keyed.url + path, headers=bearer("plain"), timeout=10).status_code == status, path


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", "Bearer wrong", f"Basic {secret('plain')}", secret("plain"), "Bearer \xff\xfe",
     f"Bearer {secret('plain')}x", f"Bearer {secret('plain').upper()}", "Bearer " + "x" * 8000,
     f"Bearer {hashlib.sha256(secret('plain').encode()).hexdigest()}"],
)  # fmt: skip
def test_r13_what_is_no_key_is_refused(keyed: Served, authorization: str) -> None:
    """Fails when a part of a key, its hash, or another scheme is enough (R13)."""
    headers = {"Authorization": authorization.encode("latin-1")}
    answer = requests.post(f"{keyed.url}/chat", json={"user_input": "hi"}, headers=headers, timeout=10)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert "Incorrect API key provided" in answer.text  # by which LiteLLM tells it from a bad request
    assert secret("plain") not in answer.text + keyed.log()


@pytest.mark.parametrize(
    "target",
    ["//", "/./v1/models", "/livez/../v1/models", "/docs/../v1/models", "/v1/models?x=/livez", "/v1/models#/livez",
     "/static_content/../v1/models", "/static_content/..%2fv1/models", "/%2e%2e/v1/models", "/livez/v1/models",
     "/V1/models", "/v1//models", "http://evil.example/v1/models", "/v1/models;/livez"],
)  # fmt: skip
@pytest.mark.parametrize("host", ["", "127.0.0.1", "localhost:3000", "evil.example", "/livez", "a/b?c"])
def test_r13_odd_hosts_and_paths_get_nothing(keyed: Served, target: str, host: str) -> None:
    """Fails when the key is asked for one spelling of a path, and the router answers another (R13)."""
    address, port = urlsplit(keyed.url).netloc.split(":")
    connection = http.client.HTTPConnection(address, int(port), timeout=10)
    connection.putrequest("GET", target, skip_host=True)
    connection.putheader("Host", host)
    connection.putheader("X-Forwarded-For", "127.0.0.1")
    connection.putheader("X-Original-URL", "/livez")
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status in (400, 401, 404)
    assert b'"data"' not in answer.read()
    connection.close()


def test_openai_s_client_sends_its_key(keyed: Served) -> None:
    """Fails when OpenAI's clients cannot be pointed at a service with keys."""
    with openai.OpenAI(base_url=f"{keyed.url}/v1", api_key=secret("plain")) as client:
        assert client.chat.completions.create(model="echo", **HELLO).choices[0].message.content == "hello"
    with (
        openai.OpenAI(base_url=f"{keyed.url}/v1", api_key="wrong") as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def ask(served: Served, name: str, body: object = HELLO) -> requests.Response:
    return requests.post(served.url + COMPLETIONS, json=body, headers=bearer(name), timeout=30)


def test_requests_a_minute_are_counted_for_each_key(keyed: Served) -> None:
    """Fails when one key's greed is another's refusal, or a refusal does not say when to come back."""
    answers = [ask(keyed, "requests") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[-1].json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 20
    assert ask(keyed, "plain").status_code == 200


def test_what_pages_and_scrapers_ask_all_the_time_is_not_counted(keyed: Served) -> None:
    """Fails when an open page or Prometheus uses up the requests of its key, or is itself refused by their limit."""

    def look(path: str) -> int:
        return requests.get(keyed.url + path, headers=bearer("once"), timeout=10).status_code

    looked = ("/v1/models", "/metrics", "/schema.json", "/v1/models/echo")
    assert [look(path) for path in looked] == [200] * 4
    assert [ask(keyed, "once").status_code for _ in range(2)] == [200, 429]
    assert [look(path) for path in looked] == [200] * 4
    counted = requests.post(f"{keyed.url}/tokenize", json={"prompt": "x"}, headers=bearer("once"), timeout=10)
    assert counted.status_code == 429


def test_tokens_a_minute_are_counted_after_the_answer(keyed: Served) -> None:
    """Fails when answers cost nothing, or a request is refused before the budget is spent."""
    assert [ask(keyed, "tokens").status_code for _ in range(2)] == [200, 429]


def test_answers_at_the_same_time_are_limited(keyed: Served) -> None:
    """Fails when a key holds more places than it may, or gets none back."""
    statuses: list[int] = []
    askers = [
        threading.Thread(target=lambda: statuses.append(ask(keyed, "streams", SLOW).status_code)) for _ in range(5)
    ]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert sorted(statuses) == [200, 200, 429, 429, 429]
    assert ask(keyed, "streams", {**HELLO, "n": 2}).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_more_answers_than_a_key_ever_gets_are_the_request_s_fault(keyed: Served, stream: bool) -> None:
    """Fails when a client is told to come back later for what it will never get."""
    refused = ask(keyed, "streams", {**HELLO, "n": 3, "stream": stream})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "invalid_value", "n")
    assert "2 answers" in error["message"]
    assert "retry-after" not in refused.headers


def test_access_log_names_the_key(keyed: Served) -> None:
    """Fails when nobody can tell who asked."""
    ask(keyed, "plain")
    assert '"key": "plain"' in keyed.log()
    assert secret("plain") not in keyed.log()


def test_pages_of_another_origin_read_refusals_too(keyed: Served) -> None:
    """Fails when a browser shows a network error in place of the reason."""
    preflight = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    asked = requests.options(keyed.url + COMPLETIONS, headers=preflight, timeout=10)
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, ORIGIN)
    for path, status in ((COMPLETIONS, 401), ("/nowhere", 401), ("/docs", 401)):
        answer = requests.post(keyed.url + path, json=HELLO, headers={"Origin": ORIGIN}, timeout=10)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, ORIGIN)
        assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()
    refused = requests.options(keyed.url + COMPLETIONS, headers={**preflight, "Origin": "https://evil"}, timeout=10)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")
    assert "access-control-allow-origin" not in refused.headers
    stranger = requests.get(f"{keyed.url}/", headers={"Origin": "https://evil"}, timeout=10)
    assert "access-control-allow-origin" not in stranger.headers


def test_r13_a_websocket_needs_more_than_a_path(keyed: Served) -> None:
    """Fails when an upgrade goes around the keys (R13)."""
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    assert requests.get(f"{keyed.url}/v1/models", headers=headers, timeout=10).status_code == 404


def test_a_budget_refills_and_remembers_its_debt() -> None:
    """Fails when a limit resets at the full minute, where twice the rate gets through."""
    budget = Budget(60)

    def seconds_short(now: float) -> float:
        budget.refill(now)
        return budget.seconds_short

    assert seconds_short(1000.0) == 0
    budget.take(60)
    assert seconds_short(1000.0) == 1
    assert seconds_short(1001.0) == 0
    budget.take(120)
    assert seconds_short(1001.0) == 120
    assert seconds_short(9999.0) == 0


def test_a_refused_beginning_changes_nothing() -> None:
    """Fails when a refusal takes a place that nobody gives back."""
    key = Key(KeyEntry(name="a", sha256="0" * 64, concurrent_streams=2))
    key.begin(2, 0.0)
    for _ in range(3):
        with pytest.raises(ParleyError) as caught:
            key.begin(1, 0.0)
        assert caught.value.code is ErrorCode.RATE_LIMIT_EXCEEDED
    key.end(2, 10, 0.0)
    key.begin(2, 0.0)


def listen(env: dict[str, str], host: str) -> tuple[subprocess.Popen[str], int]:
    """A service on this address."""
    port = free_port()
    command = [sys.executable, "-m", "bentoml", "serve", "service:Parley", "--host", host, "--port", str(port)]
    environment = clean_environment({"PARLEY_ENGINE": "echo", **env})
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True), port


def test_r13_r17_listening_to_all_without_keys_must_be_meant() -> None:
    """Fails when a service that was started for one machine answers a whole network (R13, R17)."""
    process, _ = listen({}, "0.0.0.0")
    said = process.communicate(timeout=40)[0]
    assert process.returncode == 1
    (line,) = [line for line in said.splitlines() if line.startswith("parley: ")]
    assert "0.0.0.0" in line
    assert "PARLEY_ALLOW_ANONYMOUS" in line


def test_listening_to_all_is_told_at_the_start() -> None:
    """Fails when the log does not say that everybody is let in."""
    process, port = listen({"PARLEY_ALLOW_ANONYMOUS": "true"}, "0.0.0.0")
    assert process.stdout
    try:
        line = next(line for line in process.stdout if line.startswith("parley: "))
        assert "everybody is let in" in line
        with socket.create_connection(("127.0.0.1", port), timeout=30):
            pass
    finally:
        process.terminate()
        process.stdout.close()
        process.wait(30)


def test_a_new_key_fits_the_file(tmp_path: Path) -> None:
    """Fails when the key that is printed and the hash beside it do not belong together."""
    command = [sys.executable, "-m", "parley.api.keys", "web"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ)).stdout
    key, digest = re.findall(r"parley-[\w-]+", printed)[0], re.findall(r'sha256 = "(\w+)"', printed)[0]
    assert hashlib.sha256(key.encode()).hexdigest() == digest
    (tmp_path / "keys.toml").write_text(printed[printed.index("[[keys]]") :])
    assert not load_keys(tmp_path / "keys.toml").open_to_all


@pytest.mark.parametrize("name", ["two words", 'a"b', "", "x" * 65])
def test_a_name_that_no_file_of_keys_takes_is_refused(name: str) -> None:
    """Fails when an entry is printed that ends the service at its next start."""
    command = [sys.executable, "-m", "parley.api.keys", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert (done.returncode, done.stdout) == (2, "")
    assert "1 to 64 letters" in done.stderr
