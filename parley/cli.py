"""`parley`: chat in a terminal, ask once, look at a service's state, convert a model.

Needs neither torch nor the service's packages, but for `convert`, which is a program of its own.
"""

import argparse
import io
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from parley.client import Client
from parley.contract.chat import Message
from parley.contract.errors import ParleyError
from parley.reply import Reply

DEFAULT_URL = "http://127.0.0.1:3000"

FAILED = 1
INTERRUPTED = 130
"""What shells expect of a program that Ctrl-C ended."""

NO_TEXT = "the question is not in the encoding of this terminal, which is most likely UTF-8"

_SHOWN_CONTROLS = {ord("\n"), ord("\t")}
_HIDDEN = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if code not in _SHOWN_CONTROLS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0 for success, 1 with a line on stderr for a failure."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        # Whatever the locale says: `_is_text` finds what is no text.
        sys.stdin.reconfigure(errors="surrogateescape")
    parser = _parser()
    chosen, rest = parser.parse_known_args(arguments)
    if rest and chosen.run is not _convert:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        status: int = chosen.run(chosen, rest)
        return status
    except ParleyError as error:
        return _fail(_told(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:  # of reading and printing: the client's are ParleyErrors
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        return FAILED if isinstance(error, BrokenPipeError) else _fail(error.strerror or str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="parley", description="Talk to a Parley service.")
    parser.add_argument(
        "--url", default=os.environ.get("PARLEY_URL") or DEFAULT_URL, help="default: PARLEY_URL or %(default)s"
    )
    parser.add_argument("--api-key", default=os.environ.get("PARLEY_API_KEY"), help="default: PARLEY_API_KEY")
    commands = parser.add_subparsers(required=True, metavar="chat | ask | health | convert")
    chat = commands.add_parser("chat", help="chat in the terminal")
    chat.set_defaults(run=_with_client(lambda _, client: Terminal(client).run()))
    ask = commands.add_parser("ask", help="print one answer")
    ask.add_argument("question", nargs="?", default="-", help="read from stdin when missing or -")
    ask.set_defaults(run=_with_client(_ask))
    health = commands.add_parser("health", help="say whether the service is ready; exit status 1 when it is not")
    health.set_defaults(run=_with_client(_health))
    convert = commands.add_parser("convert", help="export a model for the OpenVINO engine", add_help=False)
    convert.set_defaults(run=_convert)
    return parser


def _with_client(command: Callable[[argparse.Namespace, Client], int]) -> Callable[[argparse.Namespace, object], int]:
    """The command with a client of the service that was chosen."""

    def run(chosen: argparse.Namespace, _: object) -> int:
        try:
            client = Client(chosen.url, chosen.api_key)
        except ValueError as error:
            return _fail(str(error))
        with client:
            return command(chosen, client)

    return run


def _ask(chosen: argparse.Namespace, client: Client) -> int:
    question = sys.stdin.read().strip() if chosen.question == "-" else chosen.question
    if not question:
        return _fail("there is no question: give it as an argument or on stdin")
    if not _is_text(question):
        return _fail(NO_TEXT)
    with client.stream([Message("user", question)]) as stream:
        for piece in stream:
            _show(piece)
    _show("\n")
    _tell_limit(stream.reply)
    return 0


def _health(_: argparse.Namespace, client: Client) -> int:
    health = client.health()
    if not health.ready:
        return _fail(" ".join(filter(None, (f"{client.base_url} is {health.state}.", health.detail))))
    print(f"{client.base_url} is ready and serves {', '.join(client.models())}")
    return 0


def _convert(_: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Passes its arguments on: they are the other program's, help included."""
    return subprocess.run([sys.executable, "-m", "parley.convert", *arguments], check=False).returncode


class Terminal:
    """A chat in the terminal. Ctrl-C stops the answer, Ctrl-D leaves, /clear starts anew."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._messages: list[Message] = []

    def run(self) -> int:
        """Reads and answers until the input ends."""
        with suppress(ImportError):  # `input` reads with it: without, a terminal cuts lines after 4,095 bytes
            import readline  # noqa: F401
        print("Ctrl-C stops an answer, /clear starts a new conversation, Ctrl-D leaves.")
        while (line := _read_line()) is not None:
            if line == "/clear":
                self._messages.clear()
            elif not _is_text(line):
                _fail(NO_TEXT)
            elif line:
                self._answer(line)
        print()
        return 0

    def _answer(self, question: str) -> None:
        """Streams one answer; what came of it stays in the conversation, a question without any answer does not."""
        self._messages.append(Message("user", question))
        text: list[str] = []
        try:
            with self._client.stream(self._messages) as stream:
                for piece in stream:
                    text.append(piece)
                    _show(piece)
            print()
            _tell_limit(stream.reply)
        except KeyboardInterrupt:
            print(" (stopped)")
        except ParleyError as error:
            print()
            _fail(_told(error))
        if text:
            self._messages.append(Message("assistant", "".join(text)))
        else:
            self._messages.pop()


def _is_text(typed: str) -> bool:
    """Whether all bytes that were typed or read were characters; what was none is half a surrogate pair here."""
    return not any("\ud800" <= character <= "\udfff" for character in typed)


def _read_line() -> str | None:
    """One line of input; empty after Ctrl-C, None after Ctrl-D."""
    try:
        return input("> ").strip()
    except KeyboardInterrupt:
        print()
        return ""
    except EOFError:
        return None


def _show(text: str) -> None:
    """Prints text of the model at once; a terminal does not get control characters, which could command it."""
    sys.stdout.write(text.translate(_HIDDEN) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _tell_limit(reply: Reply) -> None:
    """Says on stderr, where it is in nobody's pipe, that an answer goes no further than it was let."""
    if reply.limited:
        _say("the answer was cut at the length limit")


def _told(error: ParleyError) -> str:
    """The message, with the wait that the server asks for."""
    return error.message if error.retry_after is None else f"{error.message} ({error.retry_after:.0f} s)"


def _fail(message: str) -> int:
    _say(message)
    return FAILED


def _say(message: str) -> None:
    print(f"parley: {' '.join(message.split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
