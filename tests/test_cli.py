"""The command line, as a shell and a terminal see it."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from parley.cli import NO_TEXT
from tests.scripted import Say, answers, chat_service, scripted, streams

COMMAND = [sys.executable, "-m", "parley.cli"]
NOBODY = "http://127.0.0.1:9"


LIMITED = b'data: {"choices": [{"delta": {"content": "half"}, "finish_reason": "length"}]}\n\ndata: [DONE]\n\n'
"""An answer that was cut at its limit."""


def parley(url: str, *arguments: str, text: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PARLEY_URL": url, "PYTHONIOENCODING": "utf-8", **env}
    return subprocess.run(
        [*COMMAND, *arguments],
        input=text,
        capture_output=True,
        encoding="utf-8",
        env=environment,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "text"), [(["hi, 日本 $5"], ""), ([], "hi, 日本 $5\n"), (["-"], "hi, 日本 $5\n")]
)
def test_ask_prints_the_answer_and_nothing_else(echo_service, arguments, text):
    """`parley ask` cannot be used in a pipe: its question or its answer picks up something else."""
    done = parley(echo_service.url, "ask", *arguments, text=text)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hi, 日本 $5\n", "")


@pytest.mark.parametrize(("arguments", "words"), [(["ask", "hi"], "Nothing answers"), (["health"], "Nothing answers")])
def test_failure_is_one_line_and_a_status(arguments, words):
    """A script that uses the command takes a failure for an answer, or its user sees a traceback."""
    done = parley(NOBODY, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"parley: {words}[^\n]*\n", done.stderr)


def test_wait_that_the_service_asks_for_is_told():
    """Fails when a person is told to retry after the time given, and no time is."""
    full = b'{"error": {"message": "Full. Retry after the time given.", "code": "queue_full"}}'
    with scripted(chat_service(answers("429 Too Many Requests", full, more="Retry-After: 7\r\n"))) as server:
        done = parley(server.url, "ask", "hi")
    assert (done.returncode, done.stderr) == (1, "parley: Full. Retry after the time given. (7 s)\n")


def test_empty_address_is_the_default():
    """Fails when a PARLEY_URL that is set to nothing is taken for an address, where the page takes the default."""
    done = parley("", "--help")
    assert "http://127.0.0.1:3000" in done.stdout


def test_health_of_a_server_without_models_is_no_contradiction():
    """Fails when a server is said to be ready with the exit status of one that is not."""

    def script(request: bytes, say: Say) -> None:
        listing = request.startswith(b"GET /v1/models ")
        (answers("200 OK", b'{"data": []}') if listing else answers("404 Not Found", b""))(request, say)

    with scripted(script) as server:
        done = parley(server.url, "health")
        assert (done.returncode, done.stderr) == (1, f"parley: {server.url} is not ready. It offers no model.\n")


def test_convert_needs_no_address_and_no_key():
    """Fails when a setting of the client, which it does not use, keeps a model from being converted."""
    done = parley("no address", "convert", "--dtype", "int8", "/nonexistent/model", PARLEY_API_KEY="\n")
    assert (done.returncode, done.stderr.startswith("parley: model '/nonexistent/model'")) == (1, True)


def test_unknown_option_is_refused():
    """Fails when a mistyped option has no effect."""
    done = parley(NOBODY, "ask", "hi", "--modle", "x")
    assert (done.returncode, "unrecognized arguments: --modle x" in done.stderr) == (2, True)


def test_ask_without_a_question_fails(echo_service):
    """An empty pipe is sent to the model as a question."""
    done = parley(echo_service.url, "ask", text=" \n")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no question" in done.stderr


def test_ask_fails_when_the_answer_is_cut():
    """A cut answer in a pipe looks whole."""

    half = streams(b'data: {"choices": [{"delta": {"content": "half"}}]}\n\n')
    with scripted(chat_service(half)) as server:
        done = parley(server.url, "ask", "hi")
    assert (done.returncode, done.stdout) == (1, "half")
    assert done.stderr == "parley: The connection broke before the answer was complete.\n"


def test_ask_tells_that_the_answer_was_cut_at_its_limit():
    """Fails when an answer that was cut at its token or time limit looks complete, or no longer counts as one."""
    with scripted(chat_service(streams(LIMITED))) as server:
        done = parley(server.url, "ask", "hi")
    assert (done.returncode, done.stdout) == (0, "half\n")
    assert done.stderr == "parley: the answer was cut at the length limit\n"


def test_chat_tells_that_the_answer_was_cut_at_its_limit():
    """Fails when an answer in the terminal that was cut at its token or time limit looks complete."""
    with scripted(chat_service(streams(LIMITED))) as server, terminal(server.url, "chat") as chat:
        chat.until("> ")
        chat.type("hi\n")
        chat.until(r"\nhalf\s+parley: the answer was cut at the length limit\s+> ")


@pytest.mark.parametrize("command", [["ask", "hi"], ["chat"], ["health"]])
def test_key_that_no_header_can_hold_is_one_line_and_not_shown(command):
    """Fails when a key that ends in a line break gives a traceback with the key in it."""
    done = parley(NOBODY, *command, PARLEY_API_KEY="sk-hidden\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"parley: PARLEY_API_KEY=\.\.\.: [^\n]+\n", done.stderr)
    assert "hidden" not in done.stderr


def test_health_names_the_model(echo_service):
    """`parley health` says ready without having asked what serves."""
    done = parley(echo_service.url, "health")
    assert done.returncode == 0
    assert done.stdout == f"{echo_service.url} is ready and serves echo\n"


def test_reader_that_leaves_early_gives_no_traceback(echo_service):
    """`parley ask ... | head` ends in a BrokenPipeError traceback."""
    command = f"{sys.executable} -m parley.cli --url {echo_service.url} ask 'slow {'word ' * 20}' | head -c 4"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("slow", "")


class Terminal:
    """A chat in a pseudo-terminal."""

    def __init__(self, controller: int, process: subprocess.Popen[bytes]) -> None:
        self._controller = controller
        self.process = process
        self._seen = ""

    def type(self, text: str) -> None:
        os.write(self._controller, text.encode())

    def until(self, pattern: str) -> str:
        """What is printed up to a pattern; forgets it."""
        deadline = time.monotonic() + 30
        while not (found := re.search(pattern, self._seen)):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self._seen!r}"
            if select.select([self._controller], [], [], 0.1)[0]:
                self._seen += os.read(self._controller, 65536).decode(errors="replace")
        before, self._seen = self._seen[: found.end()], self._seen[found.end() :]
        return before


@contextmanager
def terminal(url: str, *arguments: str) -> Iterator[Terminal]:
    controller, side = pty.openpty()
    environment = {**os.environ, "PARLEY_URL": url, "TERM": "dumb"}
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdin=side, stdout=side, stderr=side, env=environment, start_new_session=True
    )
    os.close(side)
    try:
        yield Terminal(controller, process)
    finally:
        process.kill()
        process.wait()
        os.close(controller)


@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
@pytest.mark.parametrize("argument", [[], [b"caf\xe9?"]])
def test_bytes_that_are_no_text_are_told_as_such(echo_service, argument, locale):
    """Fails when a question in another encoding gives a traceback, or an error about JSON."""
    environment = {**os.environ, "PARLEY_URL": echo_service.url, "LC_ALL": locale}
    done = subprocess.run(
        [*COMMAND, "ask", *argument],
        input=b"caf\xe9?",
        capture_output=True,
        env=environment,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.decode() == f"parley: {NO_TEXT}\n"


def test_full_disk_is_one_line(echo_service):
    """Fails when an answer that cannot be written ends in a traceback."""
    environment = {**os.environ, "PARLEY_URL": echo_service.url}
    with open("/dev/full", "w") as full:
        command = [*COMMAND, "ask", "hi"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, b"parley: No space left on device\n")


def test_chat_answers_stops_clears_and_leaves(echo_service):
    """Ctrl-C ends the program instead of the answer, or a stopped answer blocks the next question."""
    with terminal(echo_service.url, "chat") as chat:
        chat.until("> ")
        chat.type("slow " + "word " * 200 + "\n")
        chat.until("\nslow word word")
        chat.process.send_signal(signal.SIGINT)
        chat.until(r"\(stopped\)\s+> ")
        chat.type("/clear\n")
        chat.until("> ")
        chat.type("hello again\n")
        chat.until(r"\nhello again\s+> ")
        chat.type("\x04")
        assert chat.process.wait(30) == 0


def test_chat_goes_on_after_a_failure():
    """A service that is down for a moment ends the whole chat."""
    with terminal(NOBODY, "chat") as chat:
        chat.until("> ")
        chat.type("hello\n")
        chat.until(r"parley: Nothing answers[^\n]*\s+> ")
        chat.type("\x04")
        assert chat.process.wait(30) == 0


def test_long_line_is_asked_whole():
    """Fails when a terminal cuts what is pasted into a chat after 4,095 bytes."""
    pytest.importorskip("readline")
    with scripted(chat_service(streams(LIMITED))) as server, terminal(server.url, "chat") as chat:
        chat.until("> ")
        for _ in range(10):  # in pieces: a terminal holds no more until it is read
            chat.type("x" * 500)
            chat.until("x")
        chat.type("\n")
        chat.until("half")
        assert b"x" * 5000 in server.requests[-1]


def test_model_text_cannot_command_the_terminal(echo_service):
    """An escape sequence in an answer changes colours, the title, or the clipboard of the person's terminal."""
    with terminal(echo_service.url, "ask", "a \x1b]0;title\x07 b") as shown:
        printed = shown.until(" b")
    assert "\x1b" not in printed
    assert "\x07" not in printed
    assert "title" in printed
