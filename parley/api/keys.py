"""API keys: who may ask, and how much.

Keys are made here (`python -m parley.api.keys NAME` prints one) from 256 random bits, so a plain SHA-256 is enough to
keep: there is nothing to guess, and no dictionary to try. The file that the service reads holds hashes only.

    [[keys]]
    name = "web"
    sha256 = "..."
    requests_per_minute = 60
    tokens_per_minute = 20_000
    concurrent_streams = 4
"""

import argparse
import hashlib
import hmac
import re
import secrets
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Scope

from parley.api.errors import field_path
from parley.contract.errors import ErrorCode, ParleyError
from parley.settings import SettingsError

OPEN_PATHS = frozenset({"/", "/livez", "/healthz", "/readyz", "/docs", "/docs.json"})
"""What anybody may read: whether the service is up, and how it is used."""

OPEN_FOLDER = "/static_content/"
"""Scripts and styles of the documentation."""

MINUTE = 60.0

NAME = r"^[\w.-]{1,64}$"
"""What a key may be called."""

PerMinute = Annotated[int, Field(ge=1, le=2**31)]


class KeyEntry(BaseModel):
    """One key of the file. A limit that is not there is no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=NAME)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the key, in hexadecimal digits."""
    requests_per_minute: PerMinute | None = None
    """For answers and for token counts; what the service tells of itself is free."""
    tokens_per_minute: PerMinute | None = None
    """Of prompts and answers together; an answer under way is not cut, but its debt must be paid off first."""
    concurrent_streams: Annotated[int, Field(ge=1, le=2**31)] | None = None
    """Answers under way, streamed or not; `n` answers to one request are `n`."""


class KeyFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: Annotated[list[KeyEntry], Field(min_length=1)]


class Budget:
    """An amount a minute that refills steadily; it may go into debt. Times are seconds of one clock."""

    def __init__(self, per_minute: int) -> None:
        self._size = float(per_minute)
        self._level = self._size
        self._at = 0.0

    def refill(self, now: float) -> None:
        """Adds what has come since the last time."""
        self._level = min(self._size, self._level + (now - self._at) * self._size / MINUTE)
        self._at = now

    @property
    def seconds_short(self) -> float:
        """Time from the last refill until there is at least one again; 0 when there is."""
        return max(0.0, (1 - self._level) * MINUTE / self._size)

    def take(self, amount: int) -> None:
        """Takes an amount out, there or not."""
        self._level -= amount


class Key:
    """One key in use. Every `begin` that did not raise is followed by one `end`."""

    def __init__(self, entry: KeyEntry) -> None:
        self.name = entry.name
        self.digest = bytes.fromhex(entry.sha256)
        self._requests = Budget(entry.requests_per_minute) if entry.requests_per_minute else None
        self._tokens = Budget(entry.tokens_per_minute) if entry.tokens_per_minute else None
        self._streams = entry.concurrent_streams
        self._under_way = 0

    def request(self, now: float) -> None:
        """Counts one request.

        Raises:
            ParleyError: `RATE_LIMIT_EXCEEDED`, with the seconds after which one is allowed again.
        """
        if self._requests is not None:
            self._requests.refill(now)
            if seconds := self._requests.seconds_short:
                raise _refusal("requests a minute", seconds)
            self._requests.take(1)

    def begin(self, answers: int, now: float) -> None:
        """Begins answers.

        Raises:
            ParleyError: what `request` raises; `INVALID_VALUE` for more answers than may ever be under way.
        """
        if self._streams is not None and answers > self._streams:
            message = f"n: this API key may have {self._streams} answers at the same time; ask for no more"
            raise ParleyError(ErrorCode.INVALID_VALUE, message, "n")
        if self._tokens is not None:
            self._tokens.refill(now)
            if seconds := self._tokens.seconds_short:
                raise _refusal("tokens a minute", seconds)
        if self._streams is not None and self._under_way + answers > self._streams:
            raise _refusal("answers at the same time", 1.0)
        self._under_way += answers

    def end(self, answers: int, tokens: int, now: float) -> None:
        """Ends what `begin` began, and takes the tokens off the budget."""
        self._under_way -= answers
        if self._tokens is not None:
            self._tokens.refill(now)
            self._tokens.take(tokens)


def _refusal(what: str, seconds: float) -> ParleyError:
    message = f"This API key's limit of {what} is reached. Retry after the time given."
    return ParleyError(ErrorCode.RATE_LIMIT_EXCEEDED, message, retry_after=seconds)


class Keyring:
    """All keys of a service; an empty one lets everybody in.

    Args:
        entries: from the file.
    """

    def __init__(self, entries: Sequence[KeyEntry] = ()) -> None:
        self._keys = [Key(entry) for entry in entries]

    @property
    def open_to_all(self) -> bool:
        """Whether no key is asked for."""
        return not self._keys

    def admit(self, scope: Scope) -> Key | None:
        """Whose request it is; None on a service or a path that is open to all.

        Raises:
            ParleyError: `INVALID_API_KEY` without a good key.
        """
        if self.open_to_all or is_open(scope):
            return None
        key = self._find(Headers(scope=scope).get("authorization", ""))
        if key is None:
            # In the words that LiteLLM and its like look for.
            message = "Incorrect API key provided, or none: a good one is sent as 'Authorization: Bearer KEY'."
            raise ParleyError(ErrorCode.INVALID_API_KEY, message)
        return key

    def _find(self, authorization: str) -> Key | None:
        """The key that was sent. All are compared, each in constant time: how long it takes tells nothing."""
        scheme, _, sent = authorization.partition(" ")
        digest = hashlib.sha256(sent.strip().encode("latin-1")).digest()
        found = [key for key in self._keys if hmac.compare_digest(key.digest, digest)]
        return found[0] if found and scheme.lower() == "bearer" else None


def is_open(scope: Scope) -> bool:
    """Whether a request needs no key: an exact match, so that no odd spelling of a path gets in."""
    path = scope["path"]
    plain_file = path.startswith(OPEN_FOLDER) and ".." not in path
    return scope["method"] in ("GET", "HEAD") and (path in OPEN_PATHS or plain_file)


def key_of(request: Request) -> Key | None:
    """The key that a request came with; the gate puts it there."""
    key: Key | None = getattr(request.state, "key", None)
    return key


def load_keys(path: Path | None) -> Keyring:
    """The keys of a file; an empty keyring without one.

    Raises:
        SettingsError: one line with the file and what is wrong in it; never a hash.
    """
    if path is None:
        return Keyring()
    try:
        entries = KeyFile.model_validate(tomllib.loads(path.read_text("utf-8"))).keys
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not TOML: {error}"
        raise SettingsError(f"PARLEY_KEYS_FILE={path}: {reason}") from None
    except ValidationError as error:
        fault = error.errors(include_input=False)[0]
        raise SettingsError(f"PARLEY_KEYS_FILE={path}: {field_path(fault['loc'])}: {fault['msg']}") from None
    for field in ("name", "sha256"):
        values = [getattr(entry, field) for entry in entries]
        if len(set(values)) < len(values):
            raise SettingsError(f"PARLEY_KEYS_FILE={path}: two keys have the same {field}")
    return Keyring(entries)


def main() -> None:
    """Prints a new key, and the lines of the file for it."""
    parser = argparse.ArgumentParser(prog="python -m parley.api.keys", description="Makes an API key.")
    parser.add_argument("name", help="who or what the key is for; shown in logs")
    name = parser.parse_args().name
    if not re.search(NAME, name):
        parser.error("a name is 1 to 64 letters, digits, '_', '.' or '-'")
    key = f"parley-{secrets.token_urlsafe(32)}"
    print(f"The key, told only now: {key}\n\nFor the file of PARLEY_KEYS_FILE:\n")
    print(f'[[keys]]\nname = "{name}"\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"')


if __name__ == "__main__":
    main()
