"""What the page needs of whatever answers: the service's client, or an engine in this process."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from parley.client import ServiceHealth
from parley.contract.chat import Message
from parley.reply import Reply


class Stream(Protocol):
    """One answer under way; `parley.reply.ReplyStream` is one."""

    def __enter__(self) -> "Stream": ...

    def __exit__(self, *_: object) -> None: ...

    def __iter__(self) -> Iterator[str]:
        """Pieces of text; raises `ParleyError` unless it ends with the whole answer."""

    @property
    def reply(self) -> Reply:
        """The whole answer, after the iteration."""

    def cancel(self) -> None:
        """Makes the iteration end early, with a `ParleyError`; for a thread that does not iterate."""


class Backend(Protocol):
    """Whatever answers; `parley.client.Client` is one. Every method may raise `ParleyError`."""

    def stream(self, messages: Sequence[Message]) -> Stream:
        """Begins an answer to the last of the messages."""

    def models(self) -> list[str]:
        """Names of the models that answer."""

    def health(self) -> ServiceHealth:
        """Whether an answer could begin now."""
