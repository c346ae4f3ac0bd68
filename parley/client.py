"""The typed client: what the Streamlit page, the command line and the benchmark use.

It speaks OpenAI's chat completions over `requests`, so that it works against this service and any compatible one. An
answer is whole or it is an error: a stream that ends without `[DONE]` raises, however good the text looked.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import requests
import urllib3
from pydantic import JsonValue
from requests.adapters import HTTPAdapter

from parley.contract.chat import Message
from parley.contract.errors import ErrorCode, ParleyError
from parley.reply import BROKEN_OFF, NO_CHAT, SILENT, Reply, ReplyStream, parsed, told_error, usage_of

CONNECT_TIMEOUT = 5.0
"""Seconds to open a connection."""
HEALTH_TIMEOUT = 3.0
"""Seconds that a question about the service's state may take: it is asked between two looks of a person."""


class Unreachable(ParleyError):
    """No connection to the service: nothing listens there, or the address is wrong."""

    def __init__(self, url: str) -> None:
        super().__init__(ErrorCode.ENGINE_UNAVAILABLE, f"Nothing answers at {url}. Is the service running there?")


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
        api_key: sent as a bearer token; printable ASCII characters without spaces.
        timeout: seconds to wait for the next byte of an answer.
        model: name to ask for; by default the first that the service lists.

    Raises:
        ValueError: for an address without a scheme, and for a key that no header can hold.
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
        body = parsed(self._post({"messages": _as_json(messages), **sampling}, stream=False).content)
        try:
            choice = body["choices"][0]
            text, reason = choice["message"]["content"] or "", choice.get("finish_reason")
            return Reply(text, usage_of(body.get("usage")), reason, str(body.get("model", "")))
        except (LookupError, TypeError, ValueError) as error:
            raise ParleyError(ErrorCode.UPSTREAM_ERROR, NO_CHAT) from error

    def stream(self, messages: Sequence[Message], **sampling: JsonValue) -> ReplyStream:
        """One answer, piece by piece; arguments and errors as for `chat`.

        Use it as a context manager, so that leaving early closes the connection and thereby stops the answer.
        """
        options = {"stream": True, "stream_options": {"include_usage": True}, **sampling}
        return ReplyStream(self._post({"messages": _as_json(messages), **options}, stream=True))

    def models(self) -> list[str]:
        """Names of the models that the service offers; raises as `chat` does."""
        body = parsed(_checked(self._send("GET", "/v1/models", HEALTH_TIMEOUT)).content)
        try:
            self._listed = [str(model["id"]) for model in body["data"]]
        except (LookupError, TypeError) as error:
            raise ParleyError(ErrorCode.UPSTREAM_ERROR, NO_CHAT) from error
        return self._listed

    def health(self) -> ServiceHealth:
        """The state of the service, ready or not; raises as `chat` does.

        Servers without `/readyz` count as ready when they list a model.
        """
        response = self._send("GET", "/readyz", HEALTH_TIMEOUT)
        if response.status_code == requests.codes.not_found:
            return ServiceHealth(bool(self.models()), "ready", "")
        told = parsed(response.content) if _is_json(response) else {}
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
            return ParleyError(ErrorCode.DEADLINE_EXCEEDED, SILENT)
        if isinstance(error, requests.ConnectionError) and not isinstance(cause, urllib3.exceptions.ProtocolError):
            return Unreachable(self.base_url)
        return ParleyError(ErrorCode.UPSTREAM_ERROR, BROKEN_OFF)


def _bearer(key: str) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    """Signs requests; used as `auth`, so that a `.netrc` of the user cannot replace the key."""
    if not re.fullmatch(r"[!-~]+", key):
        raise ValueError(
            "PARLEY_API_KEY=...: printable ASCII characters without spaces are expected, and no line break at the end"
        )

    def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {key}"
        return request

    return sign


def _as_json(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in messages]


def _checked(response: requests.Response) -> requests.Response:
    """The response, unless it is an error."""
    if response.ok:
        return response
    raise told_error(
        parsed(response.content) if _is_json(response) else None,
        response.status_code,
        response.headers.get("Retry-After"),
    )


def _is_json(response: requests.Response) -> bool:
    return response.headers.get("Content-Type", "").startswith("application/json")
