"""Fault modes of upstreams, told by name: each is a script for one connection of a `ScriptedServer`.

The mode is the first word of the last message that the service under test passes on, so that one server plays them all.
"""

import json
import re
import socket
import struct
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable

from tests.scripted import STREAM_HEAD, Say, Script, answers, chunked, streams

KEY = "sk-planted-upstream-key-0123456789"
COST = 0.00042
USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 3,
    "total_tokens": 10,
    "cost": COST,
    "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 1},
}


def event(content: object) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False).encode() + b"\n\n"


def text(content: str, reason: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": reason}]})


DONE = b"data: [DONE]\n\n"
ROLE = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
ENDED = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}) + event(
    {"choices": [], "usage": USAGE}
)
WHOLE = ROLE + text("all ") + text("of it") + ENDED + DONE
HALF = ROLE + text("half an")
SCREAM = json.dumps({"error": {"message": f"{KEY} may not say mode", "code": KEY, "param": KEY}}).encode()


def told(code: object, message: str = "no", param: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "type": "x", "code": code, "param": param}}).encode()


def raw(*blocks: bytes, then: Callable[[Say], None] = lambda _: None) -> Script:
    """Bytes as they are."""

    def script(_: bytes, say: Say) -> None:
        for block in blocks:
            say(block)
        then(say)

    return script


def forever(block: bytes, pause: float = 0.05) -> Callable[[Say], None]:
    """The same bytes until the reader has gone."""

    def drip(say: Say) -> None:
        while True:
            say(block)
            time.sleep(pause)

    return drip


def silence(_: Say) -> None:
    time.sleep(6)


def reset(say: Say) -> None:
    """Closes the connection so that the kernel sends RST."""
    connection: socket.socket = say.__self__  # type: ignore[attr-defined]
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def once(first: Script) -> list[Script]:
    """A script for the first request, and a whole answer to every later one."""
    return [first, streams(WHOLE)]


def half(*more: bytes, then: Callable[[Say], None] = lambda _: None) -> Script:
    """Half an answer, and then something else."""
    return raw(STREAM_HEAD, chunked(HALF), *map(chunked, more), then=then)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"

MODES: dict[str, Script | list[Script]] = {
    # whole answers
    "whole": streams(WHOLE),
    "carriage-returns": streams(WHOLE.replace(b"\n", b"\r\n")),
    "byte-by-byte": streams(*(WHOLE[at : at + 1] for at in range(len(WHOLE)))),
    "no-done": streams(ROLE + text("all ") + text("of it") + ENDED),
    "no-end": raw(STREAM_HEAD, chunked(WHOLE.removesuffix(DONE)), then=silence),
    "drip-after-end": raw(STREAM_HEAD, chunked(WHOLE.removesuffix(DONE)), then=forever(chunked(b": still here\n\n"))),
    "reset-after-end": raw(STREAM_HEAD, chunked(WHOLE.removesuffix(DONE)), then=reset),
    "cut-after-end": raw(STREAM_HEAD, chunked(WHOLE.removesuffix(DONE))),
    "uncounted": streams(ROLE + text("all ") + text("of it", "stop") + DONE),
    "comments": streams(b": wait\n\n", b"event: x\nid: 1\n\n", WHOLE),
    "busy-once": once(answers("429 Too Many Requests", told("rate_limit_exceeded"), more="retry-after-ms: 20\r\n")),
    "reset-once": once(raw(then=reset)),
    "empty-once": once(raw(HEAD, b"Content-Length: 0\r\n\r\n")),
    # before the first byte
    "bad-request": answers("400 Bad Request", SCREAM),
    "too-long": answers("400 Bad Request", told("context_length_exceeded")),
    "too-long-in-words": answers("400 Bad Request", told(400, "This model's maximum context length is 10 tokens")),
    "too-long-flat": answers("400 Bad Request", b'{"object": "error", "message": "maximum context length is 9"}'),
    "too-long-sglang": answers(
        "400 Bad Request", told(400, "The input (9 tokens) is longer than the model's context length")
    ),
    "too-long-llama-cpp": answers("400 Bad Request", told(400, "the request exceeds the available context size (9)")),
    "not-utf-8-refusal": answers("400 Bad Request", b'{"error": {"message": "\xe9tat", "code": 400}}'),
    "silly-date": answers("503 No", b"", more="Retry-After: Mon, 01 Jan 99999 00:00:00 GMT\r\n"),
    "unsupported": answers("400 Bad Request", told("unsupported_parameter", param="temperature")),
    "unprocessable": answers("422 Unprocessable Entity", b"[]"),
    "unauthorized": answers("401 Unauthorized", SCREAM),
    "forbidden": answers("403 Forbidden", SCREAM, more=f"X-Key: {KEY}\r\n"),
    "not-found": answers("404 Not Found", b"<html>", "text/html"),
    "request-timeout": answers("408 Request Timeout", b""),
    "busy": answers("429 Too Many Requests", told("rate_limit_exceeded")),
    "busy-for-long": answers("429 Too Many Requests", b"{}", more="Retry-After: 30\r\n"),
    "no-quota": answers("429 Too Many Requests", told("insufficient_quota")),
    "internal": answers("500 Internal Server Error", SCREAM),
    "bad-gateway": answers("502 Bad Gateway", b"\xff" * 5_000_000, "text/html"),
    "unavailable": answers("503 Service Unavailable", b"", more="Retry-After: 0\r\n"),
    "overloaded": answers("529 Overloaded", b"["),
    "redirect": answers("307 Temporary Redirect", b"", more="Location: /v1/elsewhere\r\n"),
    "json": answers("200 OK", b'{"choices": []}'),
    "html": answers("200 OK", b"<html>", "text/html"),
    "gzip": answers("200 OK", b"\x1f\x8b" + b"x" * 100, "text/event-stream", "Content-Encoding: gzip\r\n"),
    "reset": raw(then=reset),
    "closed": raw(),
    "not-http": raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    "huge-head": raw(HEAD + b"X: " + b"y" * 300_000),
    "head-drip": raw(HEAD, then=forever(b"X-More: y\r\n")),
    "early-hints": raw(then=forever(b"HTTP/1.1 103 Early Hints\r\n\r\n")),
    "silent": raw(then=silence),
    "head-only": raw(STREAM_HEAD, then=silence),
    "bad-chunk": raw(STREAM_HEAD, b"zz\r\n"),
    "error-first": streams(event({"error": {"message": "no", "code": 503}})),
    # after it
    "reset-in-answer": half(then=reset),
    "cut": half(),
    "cut-politely": streams(HALF),
    "done-without-end": streams(HALF + DONE),
    "short-length": raw(HEAD, b"Content-Length: 9999\r\n\r\n" + HALF),
    "error-event": streams(HALF, event({"error": {"message": f"{KEY} said mode", "code": "server_error"}})),
    "busy-event": streams(HALF, event({"error": {"message": "x", "code": "rate_limit_exceeded"}})),
    "not-json": streams(HALF, b"data: {oops\n\n"),
    "not-utf-8": streams(HALF, b'data: {"choices": [{"delta": {"content": "\xff\xfe"}}]}\n\n'),
    "surrogate": streams(HALF, b'data: {"choices": [{"delta": {"content": "\\ud800"}}]}\n\n'),
    "wrong-types": streams(HALF, event({"choices": {"delta": 5}})),
    "deep": streams(HALF, b'data: {"usage": {"a": ' + b"[" * 100_000 + b"\n\n"),
    "nan": streams(HALF, b'data: {"choices": [], "usage": {"prompt_tokens": NaN}}\n\n'),
    "negative-usage": streams(HALF, ENDED.replace(b'"prompt_tokens": 7', b'"prompt_tokens": -7') + DONE),
    "filtered": streams(HALF, text("", "content_filter") + DONE),
    "key-in-text": streams(HALF, text(f"my key is {KEY}") + ENDED + DONE),
    "endless-line": half(then=forever(chunked(b"data: " + b"x" * 60_000), 0.01)),
    "silent-in-answer": half(then=silence),
    # ended by the service's own limit of time
    "comment-drip": half(then=forever(chunked(b": still here\n\n"))),
    "never-ending": half(then=forever(chunked(text("and on ")))),
    "never-ending-after-done": raw(STREAM_HEAD, chunked(WHOLE), then=forever(chunked(text("and on ")))),
}


class Faulty:
    """Plays `MODES`. `asked` counts chat requests by mode; `left` tells, by mode, that its reader has gone."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.left: defaultdict[str, threading.Event] = defaultdict(threading.Event)
        self.others: list[str] = []

    def __call__(self, request: bytes, say: Say) -> None:
        """One connection."""
        line = request.split(b"\r\n", 1)[0].decode()
        if line.startswith("GET /v1/models "):
            return answers("200 OK", b'{"data": [{"id": "stand-in"}]}')(request, say)
        found = re.search(rb'"role":"user","content":"([\w-]+) mode', request)
        if not line.startswith("POST /v1/chat/completions ") or not found:
            self.others.append(line)
            return None
        mode = found[1].decode()
        self.asked[mode] += 1
        scripts = MODES[mode]
        script = scripts if callable(scripts) else scripts[min(self.asked[mode], len(scripts)) - 1]
        try:
            return script(request, say)
        except OSError:
            self.left[mode].set()
            raise
