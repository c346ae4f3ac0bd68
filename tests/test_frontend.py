"""The page without a browser: both entry points through AppTest, and its parts."""

import csv
import io
import json
import sys
import threading
import time

import pytest
from markdown_it import MarkdownIt
from streamlit.testing.v1 import AppTest

from parley.client import Client, ServiceHealth
from parley.contract.chat import Message
from parley.contract.errors import ErrorCode, ParleyError
from parley.contract.openai import PromptTokensDetails, Usage
from parley.reply import Reply
from tests.conftest import ROOT, free_port
from tests.scripted import STREAM_HEAD, Say, answers, chat_service, chunked, scripted, streams

FRONTEND = ROOT / "frontend"
sys.path.insert(0, str(FRONTEND))  # as `streamlit run` does

from answer import Answer, Outcome  # noqa: E402
from conversation import Conversation, Turn  # noqa: E402
from display import shown  # noqa: E402
from downloads import as_csv, as_json, as_markdown  # noqa: E402
from prices import Prices, dollars  # noqa: E402
from session import Session  # noqa: E402
from sessions import KEPT_SECONDS, MOST, Sessions  # noqa: E402
from settings import Settings, SettingsError  # noqa: E402
from sidebar import LEEWAY  # noqa: E402
from standing import FRESH, Standing, Watch  # noqa: E402
from trouble import advice  # noqa: E402

ODD = "It costs $5 or $6.\nSay \"hi\", 'ho': <b>x</b> ![p](http://e/p.png) :red[r]\n\n```py\nprice = '$5'\n```\n日本 🦇"


def usage(prompt: int, completion: int) -> Usage:
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(),
    )


@pytest.fixture(params=["app.py", "monolith.py"])
def page(request, monkeypatch, echo_service) -> AppTest:
    """A fresh session of each page, on the model-free engine."""
    monkeypatch.setenv("PARLEY_URL", echo_service.url)
    monkeypatch.setenv("PARLEY_ENGINE", "echo")
    started = AppTest.from_file(str(FRONTEND / request.param), default_timeout=60).run()
    wait_for(started, lambda: "Ready" in texts(started))
    return started


@pytest.fixture
def alone(monkeypatch):
    """A fresh session of app.py with the address of a service."""

    def start(url: str) -> AppTest:
        monkeypatch.setenv("PARLEY_URL", url)
        return AppTest.from_file(str(FRONTEND / "app.py"), default_timeout=60).run()

    return start


def texts(page: AppTest) -> str:
    return "\n".join(str(element.value) for element in (*page.markdown, *page.text, *page.caption, *page.error))


def labels(page: AppTest) -> list[str]:
    return [button.label for button in page.button]


def click(page: AppTest, label: str) -> None:
    next(button for button in page.button if button.label == label).click().run()


def wait_for(page: AppTest, holds) -> None:
    """Reruns the page, as its fragments do in a browser, until something holds."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, texts(page)
        page.session_state.session.watch.forget()
        page.run()
    assert not page.exception


def ask(page: AppTest, question: str) -> None:
    page.chat_input[0].set_value(question).run()


def answered(page: AppTest) -> None:
    wait_for(page, lambda: page.session_state.session.answer is None)


def messages(page: AppTest) -> list[Message]:
    return [turn.message for turn in page.session_state.session.conversation.turns]


def test_conversation_keeps_every_byte(page):
    """What is shown leaks into what is kept: an escaped dollar or a stripped line end goes back to the model."""
    ask(page, ODD)
    answered(page)
    assert messages(page) == [Message("user", ODD), Message("assistant", ODD)]
    ask(page, "and again")
    answered(page)
    assert [message.role for message in messages(page)] == ["user", "assistant", "user", "assistant"]
    assert messages(page)[-1].content.strip() == "and again"
    assert "tokens read" in texts(page)
    assert "$0" not in texts(page)  # no price, no cost


def test_answer_survives_reruns_and_can_be_stopped(page):
    """A click on any widget kills the stream; or the stop button loses what had come."""
    ask(page, "slow " + "word " * 300)
    wait_for(page, lambda: "slow word" in page.session_state.session.answer.text)
    assert "Stop" in labels(page)
    before = page.session_state.session.answer.text
    page.run()
    wait_for(page, lambda: len(page.session_state.session.answer.text) > len(before))
    click(page, "Stop")
    answered(page)
    question, part = messages(page)
    assert question.content.startswith(part.content)
    assert "Cut short" in texts(page)
    assert "Retry" in labels(page)


def test_suggestion_asks_and_clear_empties(page):
    """The buttons of an empty page do nothing, or stay; clearing leaves something behind."""
    suggestions = labels(page)[:4]
    click(page, suggestions[0])
    answered(page)
    assert messages(page)[0] == Message("user", suggestions[0])
    assert suggestions[1] not in labels(page)
    click(page, "Clear")
    assert messages(page) == []
    assert suggestions[1] in labels(page)
    assert page.session_state.session.conversation.spent  # what it took is not forgotten


def test_sessions_do_not_share_a_conversation(page, request):
    """One user's conversation appears on another's page."""
    ask(page, "mine alone")
    answered(page)
    other = AppTest.from_file(str(FRONTEND / request.node.callspec.params["page"]), default_timeout=60).run()
    assert "mine alone" not in texts(other)


def test_service_that_is_down_loses_nothing(alone):
    """A service that is down gives a traceback, or the person has to type the question again."""
    port = free_port()
    page = alone(f"http://127.0.0.1:{port}")
    assert "cannot be reached" in texts(page)
    ask(page, "are you there?")
    answered(page)
    assert "Nothing is lost" in texts(page)
    yes = b'data: {"choices": [{"delta": {"content": "yes"}}]}\n\ndata: [DONE]\n\n'
    with scripted(chat_service(streams(yes)), port):
        click(page, "Retry")
        answered(page)
        assert messages(page) == [Message("user", "are you there?"), Message("assistant", "yes")]
        assert not page.error


def test_service_that_breaks_mid_answer_keeps_the_part(alone):
    """The text that came before a failure vanishes, at once or with a retry that fails as well."""
    half = b'data: {"choices": [{"delta": {"content": "half an ans"}}]}\n\n'
    attempts = []

    def script(request: bytes, say: Say) -> None:
        attempts.append(request)
        say(STREAM_HEAD + (chunked(half) if len(attempts) == 1 else b""))

    with scripted(chat_service(script)) as server:
        page = alone(server.url)
        for _ in range(2):
            if page.session_state.session.conversation.turns:
                click(page, "Retry")
            else:
                ask(page, "hi")
            answered(page)
            assert messages(page) == [Message("user", "hi"), Message("assistant", "half an ans")]
            assert "The answer broke off." in texts(page)
    sent = [json.loads(request.partition(b"\r\n\r\n")[2])["messages"] for request in attempts]
    assert sent == [[{"role": "user", "content": "hi"}]] * 2  # a retry does not send the part of an answer


def test_question_without_an_answer_is_shown_and_not_sent_again(alone):
    """Fails when one failed question has every later one refused, by a chat template that takes no two in a row."""
    yes = b'data: {"choices": [{"delta": {"content": "yes"}}]}\n\ndata: [DONE]\n\n'
    attempts = []

    def script(request: bytes, say: Say) -> None:
        attempts.append(json.loads(request.partition(b"\r\n\r\n")[2])["messages"])
        (answers("429 Too Many", b"{}") if len(attempts) <= 2 else streams(yes))(request, say)

    with scripted(chat_service(script)) as server:
        page = alone(server.url)
        for question in ("one", "two", "three", "four"):
            ask(page, question)
            answered(page)
    sent = [[(message["role"], message["content"]) for message in attempt] for attempt in attempts]
    assert sent == [
        [("user", "one")],
        [("user", "two")],
        [("user", "three")],
        [("user", "three"), ("assistant", "yes"), ("user", "four")],
    ]
    assert [message.content for message in messages(page)] == ["one", "two", "three", "yes", "four", "yes"]


@pytest.mark.parametrize(("counted", "note"), [(True, "3 tokens read · 4 written"), (False, "Tokens not counted")])
def test_answer_that_was_cut_at_its_limit_is_noted(alone, counted, note):
    """Fails when an answer that was cut at its token or time limit looks complete."""
    part = {"choices": [{"delta": {"content": "half an"}, "finish_reason": "length"}]}
    count = {"choices": [], "usage": usage(3, 4).model_dump() if counted else None}
    events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in (part, count)) + "data: [DONE]\n\n"
    with scripted(chat_service(streams(events.encode()))) as server:
        page = alone(server.url)
        ask(page, "hi")
        answered(page)
    assert f"{note} · cut at the length limit" in texts(page)


def test_price_gives_a_cost(alone, echo_service, monkeypatch):
    """The cost is missing, or is not that of the counted tokens."""
    monkeypatch.setenv("PARLEY_UI_PRICE_INPUT", "1000000")
    monkeypatch.setenv("PARLEY_UI_PRICE_OUTPUT", "2000000")
    page = alone(echo_service.url)
    ask(page, "hello")
    answered(page)
    counted = page.session_state.session.conversation.turns[-1].usage
    cost = counted.prompt_tokens + 2 * counted.completion_tokens
    assert f"\\${cost}.00" in texts(page)


def test_wrong_setting_is_named_on_the_page(alone, monkeypatch, echo_service):
    """A mistyped price is taken for none."""
    monkeypatch.setenv("PARLEY_UI_PRICE_INPUT", "cheap")
    assert "PARLEY_UI_PRICE_INPUT=cheap" in texts(alone(echo_service.url))


def test_key_that_no_header_can_hold_is_named_on_the_page_and_not_shown(alone, monkeypatch):
    """Fails when a Secret that ends in a line break gives a traceback with the key in it."""
    monkeypatch.setenv("PARLEY_API_KEY", "sk-hidden\n")
    page = alone("http://127.0.0.1:9")
    assert [error.value.partition(":")[0] for error in page.error] == ["PARLEY_API_KEY=..."]
    assert "sk-hidden" not in texts(page)
    assert not page.exception


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PARLEY_URL", "localhost:3000"),
        ("PARLEY_URL", "http://name:secret@host"),
        ("PARLEY_URL", "http://[::1"),
        ("PARLEY_UI_PRICE_INPUT", "-1"),
        ("PARLEY_UI_PRICE_OUTPUT", "1"),
        ("PARLEY_UI_MAX_INPUT_CHARS", "0"),
        ("PARLEY_UI_MAX_INPUT_CHARS", "many"),
        ("PARLEY_UI_MAX_CHARS", "5"),
    ],
)
def test_wrong_settings_are_refused(name, value):
    """A wrong or unknown setting has no effect, and nobody is told."""
    with pytest.raises(SettingsError, match="PARLEY_"):
        Settings.from_env({name: value})


def test_settings_are_read():
    """A right setting has no effect."""
    environment = {"PARLEY_UI_PRICE_INPUT": "0.5", "PARLEY_UI_PRICE_OUTPUT": "0", "PARLEY_UI_MAX_INPUT_CHARS": "9"}
    expected = Settings("http://x", "key", Prices(0.5, 0.0), 9)
    assert Settings.from_env({"PARLEY_URL": "http://x", "PARLEY_API_KEY": "key", **environment}) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$5 and $6", r"\$5 and \$6"),
        (r"\$5 and \\$6", r"\$5 and \\\$6"),
        ("`$a$` costs $5", r"`$a$` costs \$5"),
        ("```\n$x :red[y]\n```\n$5", "```\n$x :red[y]\n```  \n\\$5"),
        ("~~~\n$x", "~~~\n$x"),
        (":red[x] ::y[z] 10:30 https://e", r"\:red[x] \:\:y[z] 10:30 https://e"),
        ("![p](u) [l](u)", r"!\[p](u) [l](u)"),
        ("one\ntwo", "one  \ntwo"),
        ("a ` b $5", r"a ` b \$5"),
    ],
)
def test_display_makes_only_what_acts_plain(text, expected):
    """Model text becomes a formula, a colour or a picture from elsewhere; or code shows backslashes of ours."""
    assert shown(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "1. a\n\n   ```\n   code\n\n![x](http://e/p)",
        "<div>\n```\n\n![x](http://e/p)",
        '<a href="`">![x](http://e/p)`',
        "<https://a.b/`c>![x](http://e/p)`",
        "- `a\n- ![x](http://e/p)`",
        "`a\n# b ![x](http://e/p)`",
        "|a|b|\n|-|-|\n|`c|![x](http://e/p)`|",
        "```\nx\r```\r\n![x](http://e/p)",
        "   ```\ncode\n```\n![x](http://e/p)",
        "a\n2. ```\n![x](http://e/p)",
        "> a\n2. ```\n   b\n![x](http://e/p)",
        "- ```\n![x](http://e/p)",
        "-\n\n  ```\n  a\n```\n![x](http://e/p)\n```\n![x](http://e/p)",
        "- |a|\n  |-|\nb\n  ```\n![x](http://e/p)\n```\n![x](http://e/p)",
        "|a|\n|-|\n2. ```\n![x](http://e/p)",
    ],
)
def test_no_picture_hides_in_what_is_no_code(text):
    """Fails when a hostile model makes the page load a picture, with what was said in its address, from anywhere."""
    markdown = MarkdownIt("commonmark").enable("table")
    assert "<img" in markdown.render(text)
    assert "<img" not in markdown.render(shown(text))


def test_no_picture_hides_in_an_indent_that_streamlit_takes_away():
    """Fails when indented code becomes text on the page, because all of the answer is indented."""
    assert shown("    ![x](http://e/p)\n    a") == r"!\[x](http://e/p)" + "  \na"


@pytest.mark.parametrize(
    "text",
    [
        "1. so:\n\n   ```\n   a[1:n] <b> $5\n   ```\n\nthen $6",
        "- a\n  - so:\n\n    ```py\n    a[1:n] <b>\n\n    b[1:n]\n    ```\n",
        "1.  so:\n\n    ```py\n    a[1:n] <b>\n    ```\n\n2.  next",
        "- ```py\n  a[1:n] <b>\n  ```\n- b",
        "> ```py\n> a[1:n] <b>\n> ```\n> b",
        "> - so:\n>\n>   ~~~\n>   a[1:n] <b>\n\nb",
        "so:\n\n    a[1:n] <b>\n\n    $5\n\nthen",
        "- so:\n\n      a[1:n] <b>\n",
        "-\tso:\n\n\t```\n\ta[1:n] <b>\n\t```",
        "```rust\nvec![1]\n```",
    ],
)
def test_code_is_shown_as_it_is(text):
    """Fails when code gets backslashes of ours, and what is copied from it does not run."""

    def codes(markdown: str) -> list[str]:
        return [token.content for token in MarkdownIt().parse(markdown) if token.type in ("fence", "code_block")]

    assert codes(text)
    assert codes(shown(text)) == codes(text)


@pytest.mark.parametrize("word", ["mermaid", "Mermaid", "mer&#109;aid", "mer\\maid", "mermaid-x", "x mermaid"])
@pytest.mark.parametrize("prefix", ["", "- ", "> ", "1. a\n\n   ", "\ufeff", "> 2. "])
@pytest.mark.parametrize("fence", ["```", "~~~~ "])
def test_no_diagram_is_drawn(prefix, fence, word):
    """Fails when a fence becomes a diagram, which loads pictures from anywhere, and shows errors as it comes."""
    fences = [token for token in MarkdownIt().parse(shown(f"{prefix}{fence}{word}\na")) if token.type == "fence"]
    assert [token.info for token in fences] == ["text"]


def test_language_of_code_is_kept():
    """Fails when code loses its colours."""
    assert shown("```c++ title=a\nx") == "```c++ title=a\nx"


@pytest.mark.parametrize("text", ["\\", ":", "`", "` ", "+ ", "> ", "- a\n", "+ \n", "    ", "[^", "!["])
def test_display_takes_time_in_proportion_to_the_text(text):
    """Fails when an answer that repeats one thing holds up all sessions of the page for seconds."""
    began = time.monotonic()
    shown(text * (20_000 // len(text)) + "a" + "\n" * 5000)
    assert time.monotonic() - began < 2


MESSAGES = [Message("user", ODD), Message("assistant", '=1+1, "quoted"\r\nnext')]
TURNS = [Turn(message) for message in MESSAGES]


def test_downloads_hold_every_byte():
    """A downloaded conversation differs from the one on the page."""
    rows = list(csv.reader(io.StringIO(as_csv(TURNS).decode(), newline="")))
    assert rows == [["role", "content", "note"], *([*message, ""] for message in MESSAGES)]
    assert [Message(**turn) for turn in json.loads(as_json(TURNS))] == MESSAGES
    assert as_markdown(TURNS).decode() == f"## You\n\n{ODD}\n\n## Parley\n\n{MESSAGES[1].content}\n"


@pytest.mark.parametrize(
    ("end", "note"), [({"limited": True}, "cut at the length limit"), ({"whole": False}, "cut short")]
)
def test_downloads_tell_that_an_answer_was_cut(end, note):
    """Fails when a part of an answer is downloaded as if it were the whole."""
    turns = [Turn(Message("user", "hi")), Turn(Message("assistant", "half an"), **end)]
    rows = list(csv.DictReader(io.StringIO(as_csv(turns).decode(), newline="")))
    assert [row["note"] for row in rows] == ["", note]
    assert [turn.get("note") for turn in json.loads(as_json(turns))] == [None, note]
    assert as_markdown(turns).decode() == f"## You\n\nhi\n\n## Parley ({note})\n\nhalf an\n"


def test_whole_answer_replaces_a_part_and_nothing_replaces_nothing():
    """A retry doubles the answer, or an empty attempt deletes what an earlier one had brought."""
    talk = Conversation()
    failure = ParleyError(ErrorCode.ENGINE_ERROR, "The model failed.")
    talk.ask("hi")
    talk.cut("half", failure)
    talk.cut("", failure)
    assert [turn.message.content for turn in talk.turns] == ["hi", "half"]
    talk.complete(Reply("whole", usage(3, 4), "stop", "m"))
    assert [turn.message.content for turn in talk.turns] == ["hi", "whole"]
    assert (talk.failure, talk.unanswered, talk.uncounted, len(talk.spent)) == (None, False, 1, 1)


def test_second_click_of_a_double_click_does_nothing():
    """Fails when it asks again: the question shown twice, or a second answer that nobody sees and somebody pays for."""

    def script(_: bytes, say: Say) -> None:
        say(STREAM_HEAD)
        while True:
            say(chunked(b": keep-alive\n\n"))

    with scripted(script) as server, Client(server.url, model="m") as client:
        session = Session(client)
        session.suggest("Who is Batman?")
        first = session.answer
        session.suggest("Who is Batman?")
        session.retry()
        assert (session.answer, len(session.conversation.turns)) == (first, 1)
        session.stop()
        session.retry()
        assert session.answer not in (None, first)
        session.clear()
        session.retry()
        assert session.answer is None


@pytest.mark.parametrize(
    ("code", "wait", "words"),
    [
        (ErrorCode.CONTEXT_LENGTH_EXCEEDED, None, "or clear the conversation."),
        (ErrorCode.BODY_TOO_LARGE, None, "or clear the conversation."),
        (ErrorCode.INVALID_API_KEY, None, "refused as well"),
        (ErrorCode.INVALID_VALUE, None, "refused as well"),
        (ErrorCode.UPSTREAM_REFUSED, None, "refused as well"),
        (ErrorCode.QUEUE_FULL, 7.0, "try again in 7 s"),
        (ErrorCode.ENGINE_ERROR, None, "try again now"),
    ],
)
def test_advice_is_what_helps(code, wait, words):
    """Fails when somebody is told to try again what will be refused again."""
    told = advice(ParleyError(code, "no", retry_after=wait))
    assert words in told
    assert ("try again" in told) == ("try again" in words)


def test_too_many_messages_are_no_dead_end():
    """Fails when nobody is told that a conversation has become too long for the service, and that clearing it helps."""
    refusal = ParleyError(ErrorCode.INVALID_VALUE, "messages: at most 1000 items are allowed here", "messages")
    assert "or clear the conversation." in advice(refusal)


def test_standing_is_asked_for_at_every_tick(monkeypatch):
    """Fails when the badge is twice as old as it may be, as the time that asking took counts as well."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    asked = []

    class Slow:
        def health(self):
            asked.append(now[0])
            now[0] += 3
            raise ParleyError(ErrorCode.DEADLINE_EXCEEDED, "no")

    watch = Watch(Slow())
    for tick in (100.0, 105.0, 100 + FRESH):
        now[0] = tick
        watch.look()
    assert asked == [100.0, 100 + FRESH]
    assert LEEWAY > 0


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (answers("200 OK", b"<html></html>", "text/html"), "What answers at this address is not a chat service."),
        (answers("503 Service Unavailable", b'{"status": "loading", "detail": "m is loaded"}'), "Loading. m is loaded"),
    ],
)
def test_standing_speaks_of_the_service(script, words):
    """Fails when an answer is said to have broken off that nobody asked for, or a start looks like a failure."""
    with scripted(script) as server, Client(server.url) as client:
        assert Watch(client).look().words == words


def test_silent_service_is_no_answer_that_took_too_long(monkeypatch):
    """Fails when the sidebar tells of an answer before anything was asked."""
    monkeypatch.setattr("parley.client.HEALTH_TIMEOUT", 0.1)
    silent = threading.Event()
    with scripted(lambda _, __: silent.wait(30)) as server, Client(server.url) as client:
        watch = Watch(client)
        while (words := watch.look().words) == "Asking":
            pass
        assert words == "The service does not answer in time."
        silent.set()


def test_slow_service_does_not_hold_the_page():
    """Fails when the page stands still, its answer and its buttons with it, while the standing is asked for."""
    says = threading.Event()

    class Slow:
        def health(self):
            says.wait(60)
            return ServiceHealth(True, "ready", "")

        def models(self):
            return ["m"]

    watch = Watch(Slow())
    assert watch.look() == Standing(False, "Asking")
    says.set()
    while not watch.look().ready:
        pass
    assert watch.look() == Standing(True, "Ready", ["m"])


class Silent:
    """A backend that nobody asks anything."""


def test_tab_finds_its_session_again_and_no_other():
    """Fails when a reload loses the conversation, another tab gets it, or sessions pile up without end."""
    sessions = Sessions()
    mine, other = Session(Silent()), Session(Silent())
    sessions.keep("mine", mine)
    sessions.keep("other", other)
    assert (sessions.find("mine"), sessions.find("other"), sessions.find("nobody")) == (mine, other, None)
    for number in range(MOST - 1):
        sessions.keep("mine", mine)
        sessions.keep(str(number), Session(Silent()))
    assert (sessions.find("mine"), sessions.find("other")) == (mine, None)
    sessions.forget("mine")
    assert sessions.find("mine") is None


def test_session_that_nobody_shows_is_forgotten(monkeypatch):
    """Fails when what people said stays in memory for as long as the page's server runs."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    sessions = Sessions()
    sessions.keep("old", Session(Silent()))
    now[0] = KEPT_SECONDS + 1
    sessions.keep("new", Session(Silent()))
    assert sessions.find("old") is None
    assert sessions.find("new") is not None


def test_stop_before_the_server_has_begun_reaches_it():
    """Fails when Stop during the wait for the response's head leaves the server to generate the whole answer."""
    asked, stopped = threading.Event(), threading.Event()

    def script(_: bytes, say: Say) -> None:
        asked.set()
        stopped.wait(30)
        say(STREAM_HEAD)
        while True:
            say(chunked(b": keep-alive\n\n"))

    with scripted(script) as server, Client(server.url, model="m") as client:
        answer = Answer(client, MESSAGES)
        assert asked.wait(30)
        answer.stop()
        stopped.set()
        assert server.left.wait(30)
    assert answer.outcome is Outcome.STOPPED


def test_answer_that_nobody_looks_at_is_stopped_while_no_text_comes(monkeypatch):
    """Fails when a closed tab keeps its place on a server that sends keep-alives, for as long as it sends them."""
    monkeypatch.setattr("answer.ABANDONED_AFTER", 0.2)

    def script(_: bytes, say: Say) -> None:
        say(STREAM_HEAD)
        while True:
            say(chunked(b": keep-alive\n\n"))

    with scripted(script) as server, Client(server.url, model="m") as client:
        answer = Answer(client, MESSAGES)
        assert server.left.wait(30)
    assert answer.outcome is Outcome.STOPPED


def test_bug_in_a_backend_ends_the_answer(monkeypatch):
    """An error that nobody thought of leaves the page waiting for ever."""

    class Broken:
        def stream(self, _):
            raise ZeroDivisionError

    logged = []
    monkeypatch.setattr(threading, "excepthook", lambda hook: logged.append(hook.exc_type))
    answer = Answer(Broken(), MESSAGES)
    while answer.look() is Outcome.RUNNING:
        time.sleep(0.01)
    assert "its log says why" in answer.failure.message
    wait = time.monotonic() + 30
    while not logged and time.monotonic() < wait:
        time.sleep(0.01)
    assert logged == [ZeroDivisionError]


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "$0.00"), (0.000012, "$0.000012"), (0.01, "$0.01"), (12.345, "$12.35")]
)
def test_dollars(amount, text):
    """A cost below a cent is shown as nothing."""
    assert dollars(amount) == text
