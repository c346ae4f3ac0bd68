"""The page's settings: one frozen object from the environment, loud when something is wrong."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from prices import Prices

PREFIX = "PARLEY_UI_"


class SettingsError(Exception):
    """A setting that cannot be used; the message is one line with its name, its value and what is allowed."""


@dataclass(frozen=True)
class Settings:
    """What the page can be told. `PARLEY_URL` and `PARLEY_API_KEY` have no effect on the monolith."""

    url: str = "http://127.0.0.1:3000"
    """The service's address."""
    api_key: str | None = None
    prices: Prices | None = None
    """From `PARLEY_UI_PRICE_INPUT` and `PARLEY_UI_PRICE_OUTPUT`, per million tokens; without them no cost is shown."""
    max_input_chars: int = 4000
    """Most characters of one message."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings":
        """Reads the environment.

        Raises:
            SettingsError: for a name that does not exist or a value that is not allowed.
        """
        known = {f"{PREFIX}PRICE_INPUT", f"{PREFIX}PRICE_OUTPUT", f"{PREFIX}MAX_INPUT_CHARS"}
        if unknown := sorted(key for key in environ if key.startswith(PREFIX) and key not in known):
            raise SettingsError(f"{unknown[0]} is not a setting; there are {', '.join(sorted(known))}")
        return cls(
            url=_url(environ.get("PARLEY_URL") or cls.url),
            api_key=environ.get("PARLEY_API_KEY") or None,
            prices=_prices(environ),
            max_input_chars=_count(environ, f"{PREFIX}MAX_INPUT_CHARS", cls.max_input_chars),
        )


def _url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise SettingsError(f"PARLEY_URL={value}: an address begins with http:// or https://")
    try:
        place = urlsplit(value).netloc
    except ValueError as error:
        raise SettingsError("PARLEY_URL=...: something like http://127.0.0.1:3000 is expected") from error
    if "@" in place:
        raise SettingsError("PARLEY_URL=...: visitors see the address; PARLEY_API_KEY is for what they must not see")
    return value


def _prices(environ: Mapping[str, str]) -> Prices | None:
    """Both prices or none: half of a cost would be a wrong cost."""
    given = {key: environ.get(f"{PREFIX}PRICE_{key}", "") for key in ("INPUT", "OUTPUT")}
    if not any(given.values()):
        return None
    amounts = {key: _price(f"{PREFIX}PRICE_{key}", value) for key, value in given.items()}
    return Prices(amounts["INPUT"], amounts["OUTPUT"])


def _price(name: str, value: str) -> float:
    try:
        price = float(value)
    except ValueError:
        price = math.nan
    if not 0 <= price < math.inf:
        raise SettingsError(f"{name}={value}: a price per million tokens is needed, 0 or more, for both or neither")
    return price


def _count(environ: Mapping[str, str], name: str, default: int) -> int:
    value = environ.get(name) or str(default)
    if not value.isdecimal() or int(value) == 0:
        raise SettingsError(f"{name}={value}: a whole number of characters is needed, 1 or more")
    return int(value)
