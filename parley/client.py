"""The typed client: what the Streamlit page, the command line and the benchmark use.

It speaks OpenAI's chat completions over `requests`, so that it works against this service and any compatible one. An
answer is whole or it is an error: a stream that ends without `[DONE]` raises, however good the text looked.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import requests
import urllib3
from pydantic import JsonValue
from requests.adapters import HTTPAdapter

from parley.contract.chat import Message
from parley.contract.errors import WIRE, ErrorCode, ParleyError
from parley.contract.event_stream import EventData, EventTooLong
from parley.contract.openai import Usage

CONNECT_TIMEOUT = 5.0
"""Seconds to open a connection."""
HEALTH_TIMEOUT = 3.0
"""Seconds that a question about the service's state may take: it is asked between two looks of a person."""

_BROKEN_OFF = "The connection broke before the answer was complete."
_SILENT = "The service was silent for too long; the answer was given up."
_NO_CHAT = "What answers at this address is not a chat service."

_CODE_FOR_STATUS = {wire.status: code for code, wire in WIRE.items()} | {
    400: ErrorCode.INVALID_VALUE,
    404: ErrorCode.NOT_FOUND,
    408: ErrorCode.DEADLINE_EXCEEDED,
    429: ErrorCode.RATE_LIMIT_EXCEEDED,
    500: ErrorCode.INTERNAL_ERROR,
    503: ErrorCode.ENGINE_UNAVAILABLE,
}
"""For servers whose error bodies have no code of ours."""


class Unreachable(ParleyError):
    """No connection to the service: nothing listens there, or the address is wrong."""

    def __init__(self, url: str) -> None:
        super().__init__(ErrorCode.ENGINE_UNAVAILABLE, f"Nothing answers at {url}. Is the service running there?")


@dataclass(frozen=True)
class Reply:
    """A complete answer. `usage` is None where the server does not count."""

    text: str
    usage: Usage | None
    finish_reason: str | None
    model: str


@dataclass(frozen=True)
class ServiceHealth:
    """What `GET /readyz` says. `detail` is one sentence, or empty."""

    ready: bool
    state: str
    detail: str


class Client:
    """One service, with pooled connections; threads may share it.

    Args:
        base_url: where the service is; a trailing `/v1` is understood.
        api_key: sent as a bearer token.
        timeout: seconds to wait for the next byte of an answer.
        model: name to ask for; by default the first that the service lists.
    """

    def __init__(
        self, base_url: str, api_key: str | None = None, timeout: float = 120.0, model: str | None = None
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"the address of a service begins with http:// or https://, and {base_url!r} does not")
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self._timeout = timeout
        self._model = model
        self._listed: list[str] = []
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_connections=1, pool_maxsize=64))
        if api_key:
            self._session.auth = _bearer(api_key)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the pooled connections."""
        self._session.close()

    def chat(self, messages: Sequence[Message], **sampling: JsonValue) -> Reply:
        """One answer, in one piece.

        Args:
            messages: the conversation, the turn to answer last.
            sampling: further fields of the request, such as `temperature`, `max_tokens` or `seed`.

        Raises:
            Unreachable: when there is no connection.
            ParleyError: for everything that the service refuses, and for an answer that is not one.
        """
        body = _json(self._post({"messages": _as_json(messages), **sampling}, stream=False).content)
        try:
            choice = body["choices"][0]
            text, reason = choice["message"]["content"] or "", choice.get("finish_reason")
            return Reply(text, _usage(body.get("usage")), reason, str(body.get("model", "")))
        except (LookupError, TypeError, ValueError) as error:
            raise ParleyError(ErrorCode.UPSTREAM_ERROR, _NO_CHAT) from error

    def stream(self, messages: Sequence[Message], **sampling: JsonValue) -> "ReplyStream":
        """One answer, piece by piece; arguments and errors as for `chat`.

        Use it as a context manager, so that leaving early closes the connection and thereby stops the answer.
        """
        options = {"stream": True, "stream_options": {"include_usage": True}, **sampling}
        return ReplyStream(self._post({"messages": _as_json(messages), **options}, stream=True))

    def models(self) -> list[str]:
        """Names of the models that the service offers; raises as `chat` does."""
        body = _json(_checked(self._send("GET", "/v1/models", HEALTH_TIMEOUT)).content)
        try:
            self._listed = [str(model["id"]) for model in body["data"]]
        except (LookupError, TypeError) as error:
            raise ParleyError(ErrorCode.UPSTREAM_ERROR, _NO_CHAT) from error
        return self._listed

    def health(self) -> ServiceHealth:
        """The state of the service, ready or not; raises as `chat` does.

        Servers without `/readyz` count as ready when they list a model.
        """
        response = self._send("GET", "/readyz", HEALTH_TIMEOUT)
        if response.status_code == requests.codes.not_found:
            return ServiceHealth(bool(self.models()), "ready", "")
        told = _json(response.content) if _is_json(response) else {}
        state = told.get("status", "ready" if response.ok else "not ready")
        return ServiceHealth(response.ok, str(state), str(told.get("detail", "")))

    def ready(self) -> bool:
        """Whether the service would take a request now; never raises."""
        try:
            return self.health().ready
        except ParleyError:
            return False

    def _post(self, request: dict[str, Any], stream: bool) -> requests.Response:
        named = {"model": self._model_name(), **request}
        return _checked(self._send("POST", "/v1/chat/completions", self._timeout, json=named, stream=stream))

    def _model_name(self) -> str:
        if name := self._model or next(iter(self._listed or self.models()), None):
            return name
        raise ParleyError(ErrorCode.MODEL_NOT_FOUND, f"{self.base_url} offers no model.")

    def _send(self, method: str, path: str, timeout: float, **options: Any) -> requests.Response:
        """Sends one request and, unless it is an answer to stream, reads all of the response."""
        patience = (CONNECT_TIMEOUT, timeout)
        try:
            response = self._session.request(method, self.base_url + path, timeout=patience, **options)
            if not response.ok:
                response.content  # noqa: B018 - read here, where its transport errors are translated
            return response
        except requests.RequestException as error:
            raise self._transport_error(error) from error

    def _transport_error(self, error: requests.RequestException) -> ParleyError:
        """One of requests' errors in our words; requests hides what happened to a body in a ConnectionError."""
        cause = error.args[0] if error.args else None
        if isinstance(error, requests.ReadTimeout) or isinstance(cause, urllib3.exceptions.ReadTimeoutError):
            return ParleyError(ErrorCode.DEADLINE_EXCEEDED, _SILENT)
        if isinstance(error, requests.ConnectionError) and not isinstance(cause, urllib3.exceptions.ProtocolError):
            return Unreachable(self.base_url)
        return ParleyError(ErrorCode.UPSTREAM_ERROR, _BROKEN_OFF)


class ReplyText:
    """A streamed answer, put together from the bytes of its events. Reads no socket.

    An answer is complete with `[DONE]` only.
    """

    def __init__(self) -> None:
        self._events = EventData()
        self._text: list[str] = []
        self._usage: Usage | None = None
        self._finish_reason: str | None = None
        self._model = ""
        self.complete = False

    @property
    def reply(self) -> Reply:
        """The answer, once it is complete; raises `RuntimeError` before."""
        if not self.complete:
            raise RuntimeError("the answer is not complete: read it to its end first")
        return Reply("".join(self._text), self._usage, self._finish_reason, self._model)

    def feed(self, block: bytes) -> Iterator[str]:
        """The pieces of text that some more bytes bring; they are never empty.

        Raises:
            ParleyError: for an error frame, and for what is no chat completion.
        """
        try:
            for data in self._events.feed(block):
                if data == b"[DONE]":
                    self.complete = True
                    return
                if piece := self._take(data):
                    self._text.append(piece)
                    yield piece
        except EventTooLong as error:
            raise ParleyError(ErrorCode.UPSTREAM_ERROR, _NO_CHAT) from error

    def _take(self, data: bytes) -> str:
        """Notes what a chunk says beside its text, and returns the text."""
        chunk = _json(data)
        try:
            if error := chunk.get("error"):
                raise _told_error({"error": error}, 500, None)
            self._usage = _usage(chunk.get("usage")) or self._usage
            self._model = chunk.get("model") or self._model
            if not chunk.get("choices"):
                return ""
            choice = chunk["choices"][0]
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            return choice["delta"].get("content") or ""
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ParleyError(ErrorCode.UPSTREAM_ERROR, _NO_CHAT) from error


class ReplyStream:
    """An answer under way: iterate over its pieces of text, then read `reply`. Pieces are never empty."""

    def __init__(self, response: requests.Response) -> None:
        self._response = response
        self._answer = ReplyText()

    def __enter__(self) -> "ReplyStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def reply(self) -> Reply:
        """The answer, once the iteration has ended; raises `RuntimeError` before."""
        return self._answer.reply

    def close(self) -> None:
        """Ends the answer: on the server too, if it is not complete. For the thread that iterates."""
        if self._answer.complete:
            self._response.raw.drain_conn()  # the end of the chunked body, so that the connection can be used again
        self._response.close()

    def cancel(self) -> None:
        """Wakes the thread that iterates with a `ParleyError`, for it to close the connection. For any other thread."""
        with suppress(OSError, RuntimeError):  # the answer has just ended
            self._response.raw.shutdown()

    def __iter__(self) -> Iterator[str]:
        """Pieces of text as they arrive.

        Raises:
            ParleyError: for an error frame, silence longer than the client's timeout, or a stream cut before `[DONE]`.
        """
        while block := self._read():
            yield from self._answer.feed(block)
            if self._answer.complete:
                return
        raise ParleyError(ErrorCode.UPSTREAM_ERROR, _BROKEN_OFF)

    def _read(self) -> bytes:
        """The bytes that are there, at least one; empty at the end of the connection."""
        try:
            return self._response.raw.read1(decode_content=True) or b""
        except urllib3.exceptions.ReadTimeoutError as error:
            raise ParleyError(ErrorCode.DEADLINE_EXCEEDED, _SILENT) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ParleyError(ErrorCode.UPSTREAM_ERROR, _BROKEN_OFF) from error


def _bearer(key: str) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    """Signs requests; used as `auth`, so that a `.netrc` of the user cannot replace the key."""

    def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {key}"
        return request

    return sign


def _as_json(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in messages]


def _usage(counted: Any) -> Usage | None:
    """The counts, with the details that only some servers give."""
    if not counted:
        return None
    details = counted.get("prompt_tokens_details") or {}
    known = {key: value for key, value in details.items() if value is not None}
    return Usage.model_validate({**counted, "prompt_tokens_details": known})


def _checked(response: requests.Response) -> requests.Response:
    """The response, unless it is an error."""
    if response.ok:
        return response
    raise _told_error(
        _json(response.content) if _is_json(response) else None,
        response.status_code,
        response.headers.get("Retry-After"),
    )


def _told_error(body: Any, status: int, retry_after: str | None) -> ParleyError:
    """A server's error body as ours: OpenAI's shape, vLLM's numeric codes, SGLang's flat one, BentoML's bare text."""
    told = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(told, dict):
        told = {"message": told if isinstance(told, str) else None}
    try:
        known = ErrorCode(str(told.get("code")))
    except ValueError:
        known = _CODE_FOR_STATUS.get(status, ErrorCode.UPSTREAM_ERROR)
    param = told.get("param")
    message = str(told.get("message") or f"The service answered with HTTP {status}.")
    seconds = float(retry_after) if retry_after and retry_after.isdecimal() else None
    return ParleyError(known, message, param if isinstance(param, str) else None, seconds)


def _is_json(response: requests.Response) -> bool:
    return response.headers.get("Content-Type", "").startswith("application/json")


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise ParleyError(ErrorCode.UPSTREAM_ERROR, _NO_CHAT) from error
