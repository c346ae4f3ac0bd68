"""The typed client: what the Streamlit page, the command line and the benchmark use.

It speaks OpenAI's chat completions over `requests`, so that it works against this service and any compatible one. An
answer is whole or it is an error: a stream that ends without `[DONE]` raises, however good the text looked.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

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
    """No connection to the service: nothing listens there, or something between stops it."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.ENGINE_UNAVAILABLE, message)


_NO_MODEL = "It offers no model."
_OF_PROXIES = (requests.exceptions.ProxyError, requests.exceptions.InvalidProxyURL)


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
        ValueError: for what is no address, and for a key that no header can hold.
    """

    def __init__(
        self, base_url: str, api_key: str | None = None, timeout: float = 120.0, model: str | None = None
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"the address of a service begins with http:// or https://, and {base_url!r} does not")
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self._proxies = _proxies(self.base_url)
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
        except (AttributeError, LookupError, TypeError, ValueError) as error:
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
            return ServiceHealth(True, "ready", "") if self.models() else ServiceHealth(False, "not ready", _NO_MODEL)
        told = parsed(response.content) if _is_json(response) else {}
        if not isinstance(told, dict):
            raise ParleyError(ErrorCode.UPSTREAM_ERROR, NO_CHAT)
        state = told.get("status", "ready" if response.ok else "not ready")
        return ServiceHealth(response.ok, str(state), str(told.get("detail", "")))

    def ready(self) -> bool:
        """Whether the service would take a request now; never raises."""
        try:
            return self.health().ready
        except ParleyError:
            return False

    def _post(self, request: dict[str, Any], stream: bool) -> requests.Response:
        """Asks, and once more where that may go better: nothing was done of what was refused like this.

        A service that stops has closed the connection, and behind the same address there may be another that does not;
        one that has another model now is asked anew what it serves.
        """
        try:
            return self._post_once(request, stream)
        except ParleyError as error:
            renamed = error.code is ErrorCode.MODEL_NOT_FOUND and self._model is None and bool(self._listed)
            if not renamed and error.code is not ErrorCode.DRAINING:
                raise
            if renamed:
                self._listed = []
        return self._post_once(request, stream)

    def _post_once(self, request: dict[str, Any], stream: bool) -> requests.Response:
        body = _as_bytes({"model": self._model_name(), **request})
        headers = {"Content-Type": "application/json"}
        sent = self._send("POST", "/v1/chat/completions", self._timeout, data=body, headers=headers, stream=stream)
        return _checked(sent)

    def _model_name(self) -> str:
        if name := self._model or next(iter(self._listed or self.models()), None):
            return name
        raise ParleyError(ErrorCode.MODEL_NOT_FOUND, f"{self.base_url} offers no model.")

    def _send(self, method: str, path: str, timeout: float, **options: Any) -> requests.Response:
        """Sends one request and, unless it is an answer to stream, reads all of the response."""
        options |= {"timeout": (CONNECT_TIMEOUT, timeout), "proxies": self._proxies}
        try:
            response = self._session.request(method, self.base_url + path, **options)
            if not response.ok:
                response.content  # noqa: B018 - read here, where its transport errors are translated
            return response
        except OSError as error:  # each of requests' errors is one, and the lack of a file with certificates
            raise self._transport_error(error) from error

    def _transport_error(self, error: OSError) -> ParleyError:
        """One of requests' errors in our words; requests hides what happened to a body in a ConnectionError."""
        cause = error.args[0] if error.args else None
        if isinstance(error, requests.ReadTimeout) or isinstance(cause, urllib3.exceptions.ReadTimeoutError):
            return ParleyError(ErrorCode.DEADLINE_EXCEEDED, SILENT)
        if told := _obstacle(error, self.base_url):
            return Unreachable(told)
        if isinstance(error, requests.ConnectionError) and not isinstance(cause, urllib3.exceptions.ProtocolError):
            return Unreachable(f"Nothing answers at {self.base_url}. Is the service running there?")
        return ParleyError(ErrorCode.UPSTREAM_ERROR, BROKEN_OFF)


def _obstacle(error: OSError, url: str) -> str:
    """What is in the way of a connection, where it is not the service that is missing."""
    if not isinstance(error, requests.RequestException):
        return f"There are no certificates to check {url} with. Is there a file where REQUESTS_CA_BUNDLE says?"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return f"The certificate of {url} is not trusted. REQUESTS_CA_BUNDLE can name a file with its authority's."
    if isinstance(error, requests.exceptions.SSLError):
        return f"No encrypted connection to {url} comes about. Is it http:// there?"
    if isinstance(error, _OF_PROXIES) or "SOCKS" in str(error):  # for which requests needs another package
        return f"The proxy that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names does not connect to {url}."
    return ""


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


def _proxies(url: str) -> dict[str, str]:
    """What requests is told of proxies: this machine's own addresses are not asked for through one.

    Raises:
        ValueError: for what is no address.
    """
    try:
        host = urlsplit(str(requests.Request("GET", url).prepare().url)).hostname or ""
    except ValueError as error:
        raise ValueError(f"the address of a service looks like http://127.0.0.1:3000, and {url!r} does not") from error
    return {"no_proxy": host} if _is_own(host) else {}


def _is_own(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _as_bytes(body: dict[str, Any]) -> bytes:
    """JSON in UTF-8, which takes half the room that escapes would, or less; half a surrogate pair stays an escape."""
    return json.dumps(body, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")


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
