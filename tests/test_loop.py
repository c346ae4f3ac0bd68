"""The engine process's loop: what goes out, and when."""

import pytest

from parley.engine import outbox
from parley.engine.engine import Delta
from parley.engine.loop import Loop
from parley.engine.runner import Job, Placement, Sampling, Step
from parley.engine.runners.echo import EchoRunner
from parley.engine.wire import Add, Command, Events, Report


class ScriptEndedError(Exception):
    """The loop asks for more commands than the script has."""


class ScriptedLink:
    """In place of the socket: gives the commands of one turn of the loop after the other, and keeps what is sent."""

    def __init__(self, *turns: list[Command]) -> None:
        self._turns = list(turns)
        self.sent: list[str] = []

    def send(self, report: Report) -> None:
        """Keeps the text of what is sent."""
        assert isinstance(report, Events)
        self.sent += [event.text for event in report.events if isinstance(event, Delta)]

    def commands(self, wait: bool) -> list[Command]:
        """The next turn's commands."""
        if not self._turns:
            raise ScriptEndedError
        return self._turns.pop(0)


class SeenBySteps(EchoRunner):
    """An echo that notes, as each step begins, what has been sent by then."""

    def __init__(self, link: ScriptedLink) -> None:
        super().__init__("test", Placement())
        self._link = link
        self.seen: list[list[str]] = []

    def step(self) -> list[Step]:
        """One more word of each answer."""
        self.seen.append(list(self._link.sent))
        return super().step()


def added(number: int, text: str) -> Add:
    """The command that begins an answer to a text."""
    return Add(Job(number, list(text.encode()), Sampling(max_tokens=20)))


def test_nothing_is_held_while_a_prompt_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when tokens of running answers wait until another user's long prompt has been read."""
    monkeypatch.setattr(outbox, "HOLD_SECONDS", 60.0)  # whatever the machine does meanwhile
    link = ScriptedLink([added(1, "a b c d e")], [], [], [added(2, "x")], [])
    runner = SeenBySteps(link)
    with pytest.raises(ScriptEndedError):
        Loop(runner, link).run()  # type: ignore[arg-type]  # a stand-in for the socket
    assert runner.seen == [[], ["a"], ["a"], ["a", " b c"], ["a", " b c"]]
