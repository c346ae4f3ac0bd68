"""The client, against the real service, and against servers that misbehave in every way that a network allows."""

import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from parley.client import Client, Unreachable
from parley.contract.chat import Message
from parley.contract.errors import ErrorCode, ParleyError
from parley.contract.event_stream import LONGEST_EVENT, EventData, EventTooLong
from parley.reply import Reply, ReplyStream
from tests.conftest import ROOT, needs
from tests.scripted import STREAM_HEAD, Say, answers, chunked, read_request, scripted, streams

HELLO = [Message("user", "hello")]
ODD = "slow-er: $5, 'quotes' \"twice\", `code`, <b>, 日本語, 🦇, e\u0301, \u2028 and a tab\t."


def chunk(text: str) -> bytes:
    body = {"model": "m", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], "usage": None}
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode()


DONE = b"data: [DONE]\n\n"
END = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n' + DONE
WHOLE = {"model": "m", "choices": [{"index": 0, "message": {"content": "yes"}, "finish_reason": "stop"}]}


def pieces(server_url: str, **options: float) -> list[str]:
    with Client(server_url, model="m", **options) as client, client.stream(HELLO) as stream:
        return list(stream)


def test_stream_and_chat_give_the_same_bytes(echo_service):
    """Text is changed on its way: quotes, line separators or characters outside the BMP come back different."""
    with Client(echo_service.url) as client:
        with client.stream([Message("user", ODD)]) as stream:
            texts = list(stream)
        whole = client.chat([Message("user", ODD)])
    assert "".join(texts) == stream.reply.text == whole.text == ODD
    assert len(texts) > 1
    assert stream.reply.usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert (whole.finish_reason, whole.model) == ("stop", "echo")


def test_embedded_model_answers(service):
    """The client and the default service do not speak the same contract."""
    with Client(service.url) as client:
        assert client.ready()
        reply = client.chat([Message("user", "Who is Batman?")], max_tokens=8, temperature=0, seed=1)
        assert reply.text
        assert reply.usage is not None
        assert 0 < reply.usage.completion_tokens <= 8


def test_service_refusal_is_raised_with_its_code_and_param(echo_service):
    """A refused request looks like an empty answer, or loses the name of the field at fault."""
    with Client(echo_service.url) as client, pytest.raises(ParleyError) as caught:
        client.chat(HELLO, temperature="warm")
    assert (caught.value.code, caught.value.param) == (ErrorCode.INVALID_VALUE, "temperature")


@pytest.mark.parametrize("stream", [False, True])
def test_replica_that_stops_leaves_the_question_to_another(stream):
    """Fails when a rollout fails questions although another replica behind the same address takes them."""
    body = b'{"error": {"message": "Not ready: the service is stopping.", "code": "draining"}}'
    refused = answers("503 Service Unavailable", body, more="Retry-After: 1\r\n")
    taken = streams(chunk("yes") + END) if stream else answers("200 OK", json.dumps(WHOLE).encode())

    def script(request: bytes, say: Say) -> None:
        (refused if len(server.requests) == 1 else taken)(request, say)

    with scripted(script) as server:
        text = "".join(pieces(server.url)) if stream else Client(server.url, model="m").chat(HELLO).text
        assert (text, len(server.requests)) == ("yes", 2)


def test_service_that_only_stops_is_told():
    """Fails when a client asks a service that stops again and again."""
    body = b'{"error": {"message": "Not ready: the service is stopping.", "code": "draining"}}'
    with scripted(answers("503 Service Unavailable", body)) as server, Client(server.url, model="m") as client:
        with pytest.raises(ParleyError) as caught:
            client.chat(HELLO)
        assert (caught.value.code, len(server.requests)) == (ErrorCode.DRAINING, 2)


def test_model_that_is_no_more_is_looked_up_anew():
    """Fails when a chat that is open while its service gets another model is refused for ever."""
    serves = "old"

    def script(request: bytes, say: Say) -> None:
        if b"/v1/models" in request:
            answers("200 OK", json.dumps({"data": [{"id": serves}]}).encode())(request, say)
        elif f'"model": "{serves}"'.encode() in request:
            answers("200 OK", json.dumps(WHOLE).encode())(request, say)
        else:
            unknown = b'{"error": {"message": "The model does not exist.", "code": "model_not_found"}}'
            answers("404 Not Found", unknown)(request, say)

    with scripted(script) as server, Client(server.url) as client:
        assert client.chat(HELLO).text == "yes"
        serves = "new"
        assert client.chat(HELLO).text == "yes"
        with Client(server.url, model="old") as chosen, pytest.raises(ParleyError) as caught:
            chosen.chat(HELLO)
        assert caught.value.code is ErrorCode.MODEL_NOT_FOUND


def test_leaving_a_stream_stops_the_answer_on_the_server(echo_service):
    """A stopped answer goes on being generated and keeps its place: the next one on the same client must still work."""
    with Client(echo_service.url) as client:
        with client.stream([Message("user", "slow " + "word " * 500)]) as stream:
            first = next(iter(stream))
        assert first
        with pytest.raises(RuntimeError, match="not complete"):
            _ = stream.reply
        assert client.chat(HELLO).text == "hello"


def test_events_are_the_same_wherever_the_network_cuts():
    """A cut inside a UTF-8 character, a line end or a field name loses or garbles text."""
    raw = b': keep-alive\n\nevent: x\r\ndata: {"a": "\xe6\x97\xa5"}\r\n\r\nid: 1\ndata:one\ndata: two\n\n' + DONE
    whole = list(EventData().feed(raw))
    assert whole == [b'{"a": "\xe6\x97\xa5"}', b"one\ntwo", b"[DONE]"]
    for cut in range(len(raw)):
        events = EventData()
        assert [*events.feed(raw[:cut]), *events.feed(raw[cut:])] == whole


def test_event_of_many_lines_has_a_bound():
    """A server that sends line after line, and never an event, occupies its reader without end."""
    with pytest.raises(EventTooLong):
        list(EventData().feed(b"data:\n" * 100_000))
    assert len(list(EventData().feed(b"data: x\n\n" * 100_000))) == 100_000


@pytest.mark.parametrize("cut", [None, 5, -1])
def test_event_has_the_same_bound_however_it_comes(cut):
    """An event that comes whole, in one network chunk, is taken whatever its size."""
    line = b"data:".ljust(LONGEST_EVENT, b"x")

    def fed(raw: bytes) -> list[bytes]:
        events = EventData()
        return [*events.feed(raw[:cut]), *(events.feed(raw[cut:]) if cut else ())]

    assert fed(line + b"\n\n") == [line[5:]]
    with pytest.raises(EventTooLong):
        fed(line + b"x\n\n")


def test_text_is_right_when_every_byte_comes_alone():
    """Decoding network chunks instead of events breaks every character that a chunk splits."""
    raw = b": comment\n\n" + chunk("日") + chunk("本🦇") + DONE
    with scripted(streams(*(raw[i : i + 1] for i in range(len(raw))))) as server:
        assert pieces(server.url) == ["日", "本🦇"]


def test_cut_stream_is_an_error_after_its_text():
    """A server that dies mid-answer gives a short answer that looks whole."""

    def script(_: bytes, say: Say) -> None:
        say(STREAM_HEAD + chunked(chunk("half an ans")))

    with scripted(script) as server, Client(server.url, model="m") as client, client.stream(HELLO) as stream:
        texts = iter(stream)
        assert next(texts) == "half an ans"
        with pytest.raises(ParleyError, match="before the answer was complete"):
            next(texts)
        with pytest.raises(RuntimeError):
            _ = stream.reply


def test_well_ended_body_without_done_is_an_error():
    """A proxy that ends the body properly hides that the server behind it was cut off."""
    with scripted(streams(chunk("half"))) as server, pytest.raises(ParleyError) as caught:
        pieces(server.url)
    assert caught.value.code is ErrorCode.UPSTREAM_ERROR


def test_error_frame_is_raised():
    """A failure after the first token is shown as the end of the answer."""
    frame = json.dumps(
        {"error": {"message": "The model failed.", "type": "server_error", "param": None, "code": "engine_error"}}
    )
    with (
        scripted(streams(chunk("half"), f"data: {frame}\n\n".encode())) as server,
        pytest.raises(ParleyError) as caught,
    ):
        pieces(server.url)
    assert caught.value.message == "The model failed."
    assert caught.value.code is ErrorCode.ENGINE_ERROR


@pytest.mark.parametrize("head", [b"", STREAM_HEAD + chunked(chunk("half"))])
def test_silence_ends_with_an_error(head):
    """A server that hangs, before or in its answer, hangs its client for ever."""
    quiet = threading.Event()

    def script(_: bytes, say: Say) -> None:
        say(head)
        quiet.wait(30)

    with scripted(script) as server, pytest.raises(ParleyError) as caught:
        pieces(server.url, timeout=0.2)
    quiet.set()
    assert caught.value.code is ErrorCode.DEADLINE_EXCEEDED


def test_cancel_from_another_thread_wakes_the_reader_and_hangs_up():
    """The stop button does nothing while a slow server is silent, and the server never learns of it."""
    stopped = threading.Event()

    def script(_: bytes, say: Say) -> None:
        say(STREAM_HEAD + chunked(chunk("half")))
        stopped.wait(30)
        while True:
            say(chunked(b": keep-alive\n\n"))

    def stop(stream: ReplyStream) -> None:
        time.sleep(0.2)
        stream.cancel()
        stopped.set()

    with scripted(script) as server, Client(server.url, model="m") as client:
        with client.stream(HELLO) as stream:
            texts = iter(stream)
            assert next(texts) == "half"
            threading.Thread(target=stop, args=(stream,)).start()
            with pytest.raises(ParleyError):
                next(texts)
        assert server.left.wait(30)


@pytest.mark.parametrize(
    ("status", "body", "code", "message"),
    [
        ("429 Too Many", '{"error": {"message": "full", "code": "queue_full", "param": null}}', "queue_full", "full"),
        ("400 Bad", '{"error": {"message": "no such", "code": 400, "param": "n"}}', "invalid_value", "no such"),
        ("404 Not Found", '{"object": "error", "message": "unknown model", "code": 404}', "not_found", "unknown model"),
        ("503 Unavailable", '{"error": "overloaded"}', "engine_unavailable", "overloaded"),
        ("418 Teapot", "[]", "upstream_error", "The service answered with HTTP 418."),
    ],
)
def test_other_servers_errors_become_ours(status, body, code, message):
    """The errors of vLLM, SGLang, BentoML and others end in a KeyError instead of their message."""
    refusal = answers(status, body.encode(), more="Retry-After: 7\r\n")
    with scripted(refusal) as server, pytest.raises(ParleyError) as caught:
        pieces(server.url)
    assert (caught.value.code.value, caught.value.message) == (code, message)
    assert caught.value.retry_after == 7.0


def test_page_of_a_proxy_is_not_an_answer():
    """An HTML page at the address gives a traceback instead of words."""
    page = answers("200 OK", b"<html>Welcome</html>", "text/html")
    with scripted(page) as server, Client(server.url, model="m") as client:
        with pytest.raises(ParleyError, match="not a chat service"):
            client.chat(HELLO)
        with pytest.raises(ParleyError, match="not a chat service"):
            client.models()


def test_nobody_there_is_said_in_words():
    """A service that is not started gives requests' own message, which no person understands."""
    with Client("http://127.0.0.1:9", model="m") as client:
        with pytest.raises(Unreachable, match=r"Nothing answers at http://127\.0\.0\.1:9\."):
            client.chat(HELLO)
        assert not client.ready()


@pytest.mark.parametrize("address", ["http://[::1", "http://", "http://host:port", "http://a b", "https://x:99999"])
def test_what_is_no_address_is_refused(address):
    """Fails when a mistyped address is told with the first request, as a connection that broke."""
    with pytest.raises(ValueError, match=r"^the address of a service looks like http://[^\n]+ does not$"):
        Client(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_proxy_is_asked_for_this_machine(host, monkeypatch):
    """Fails when a machine behind a proxy, which knows nothing of it, cannot reach its own service."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with scripted(streams(chunk("hi"), DONE)) as server:
        assert pieces(server.url.replace("127.0.0.1", host)) == ["hi"]
    with Client("http://service.example", model="m") as client, pytest.raises(Unreachable, match="The proxy that"):
        client.chat(HELLO)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "http://"])
def test_proxy_that_cannot_be_used_is_told(proxy, monkeypatch):
    """Fails when a wrong proxy looks like a connection that broke in the middle of an answer."""
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, proxy)
    with Client("http://service.example", model="m") as client, pytest.raises(Unreachable, match="The proxy that"):
        client.chat(HELLO)


@pytest.fixture
def certificate(tmp_path):
    """A file with a key and a certificate of its own for 127.0.0.1."""
    needs("openssl")
    path = tmp_path / "own.pem"
    name = ["-subj", "/CN=own", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", path, "-out", tmp_path / "cert"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", *name]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + (tmp_path / "cert").read_bytes())
    return path


def test_certificate_that_is_not_trusted_is_told(certificate, tmp_path, monkeypatch):
    """Fails when a company's own certificate looks like a service that is not running; or the advice does not help."""

    def chat() -> str:
        with Client(f"https://127.0.0.1:{listener.getsockname()[1]}", model="m") as client:
            return client.chat(HELLO).text

    def serve() -> None:
        for _ in range(2):
            with suppress(OSError), context.wrap_socket(listener.accept()[0], server_side=True) as connection:
                read_request(connection)
                answers("200 OK", b'{"choices": [{"message": {"content": "hi"}}]}')(b"", connection.sendall)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "nothing"))
        with pytest.raises(Unreachable, match="no certificates"):
            chat()
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
        with pytest.raises(Unreachable, match="is not trusted"):
            chat()
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        assert chat() == "hi"


def test_https_at_an_address_without_it_is_told():
    """Fails when the wrong scheme looks like a service that is not running."""

    def refuse() -> None:
        with listener.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=refuse, daemon=True).start()
        with pytest.raises(Unreachable, match="Is it http:// there"):
            pieces(f"https://127.0.0.1:{listener.getsockname()[1]}")


@pytest.mark.parametrize("body", [b"[]", b"null", b'"up"'])
def test_ready_never_raises(body):
    """Fails when a server of another kind ends a loop that waits for the service."""
    with scripted(answers("200 OK", body)) as server, Client(server.url) as client:
        assert not client.ready()


def test_text_is_sent_in_utf_8():
    """Fails when a conversation in Chinese or Russian meets the limit of a body at half its length."""
    with scripted(answers("200 OK", b'{"choices": [{"message": {"content": "hi"}}]}')) as server:
        with Client(server.url, model="m") as client:
            client.chat([Message("user", "日本 \udcff")])
        (request,) = server.requests
    head, _, body = request.partition(b"\r\n\r\n")
    assert b"\r\nContent-Type: application/json\r\n" in head + b"\r\n"
    assert "日本 \\udcff".encode() in body
    assert json.loads(body)["messages"][0]["content"] == "日本 \udcff"


def test_address_without_scheme_is_refused():
    """`localhost:3000` as an address fails late, as if nothing listened there."""
    with pytest.raises(ValueError, match="begins with http"):
        Client("localhost:3000")


@pytest.mark.parametrize("key", ["sk-hidden\n", "sk-hidden\r\n", "sk hidden", "sk-hidden-\u00e9", "\n"])
def test_key_that_no_header_can_hold_is_refused_and_not_shown(key):
    """Fails when such a key is found out in the first request, by an error of requests that shows it."""
    with pytest.raises(ValueError, match=r"^PARLEY_API_KEY=\.\.\.: [^\n]+$") as caught:
        Client("http://127.0.0.1:9", api_key=key)
    assert "hidden" not in str(caught.value)


def test_key_is_sent_whatever_netrc_says(tmp_path, monkeypatch):
    """requests replaces the Authorization header by what a .netrc of the user holds for the host."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with scripted(streams(chunk("hi"), DONE)) as server:
        with Client(server.url + "/v1/", api_key="sk-1", model="m") as client, client.stream(HELLO) as stream:
            assert list(stream) == ["hi"]
        assert b"\r\nAuthorization: Bearer sk-1\r\n" in server.requests[0]
        assert server.requests[0].startswith(b"POST /v1/chat/completions ")


def test_server_that_counts_nothing_gives_no_usage():
    """Usage that nobody counted is made up, or its absence is an error."""
    with scripted(streams(chunk("hi"), DONE)) as server:
        with Client(server.url, model="m") as client, client.stream(HELLO) as stream:
            list(stream)
        assert stream.reply == Reply("hi", None, None, "m")


def test_needs_no_model_library_and_no_server_library():
    """The page or the command line can no longer be installed without torch or the service's packages."""
    heavy = "torch transformers bentoml fastapi starlette openvino msgspec"
    check = (
        "import sys, parley.client, parley.cli\n"
        f"loaded = set({heavy!r}.split()) & set(sys.modules)\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)"
    )
    subprocess.run([sys.executable, "-c", check], check=True, cwd=ROOT)
