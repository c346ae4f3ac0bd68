"""The engine process's loop: what goes out, and when."""

import pytest

from parley.contract.errors import ErrorCode
from parley.engine import outbox
from parley.engine.engine import Delta, Event, Failure, Finish
from parley.engine.loop import Loop
from parley.engine.runner import Job, Placement, Sampling, Step
from parley.engine.runners.echo import EchoRunner, Utf8Text
from parley.engine.wire import Add, Command, Events, Report


class ScriptEndedError(Exception):
    """The loop asks for more commands than the script has."""


class ScriptedLink:
    """In place of the socket: gives the commands of one turn of the loop after the other, and keeps what is sent."""

    def __init__(self, *turns: list[Command]) -> None:
        self._turns = list(turns)
        self.sent: list[str] = []
        self.events: list[Event] = []

    def send(self, report: Report) -> None:
        """Keeps what is sent, and its text apart."""
        assert isinstance(report, Events)
        self.events += report.events
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


class RefusesMarks(Utf8Text):
    """Stands in for a tokenizer whose decoder raises a plain `Exception` that quotes the text, as tokenizers does."""

    def push(self, tokens: list[int]) -> str:
        """The text, if there is no exclamation mark in it."""
        if ord("!") in tokens:
            raise Exception(f"cannot decode {bytes(tokens)!r}")
        return super().push(tokens)


class Undecodable(EchoRunner):
    """An echo with such a tokenizer, which notes what it is told to cancel."""

    def __init__(self) -> None:
        super().__init__("test", Placement())
        self.cancelled: list[int] = []

    def detokenizer(self) -> Utf8Text:
        """One that raises."""
        return RefusesMarks()

    def cancel(self, job_id: int) -> None:
        """Forgets a job."""
        self.cancelled.append(job_id)
        super().cancel(job_id)


class RefusesTwo(EchoRunner):
    """An echo that cannot take the second job, in a way that nobody has thought of."""

    def add(self, job: Job) -> None:
        """Takes a job, or raises."""
        if job.id == 2:
            raise TypeError("secret")
        super().add(job)


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


def test_r03_a_job_that_cannot_be_taken_fails_alone() -> None:
    """R3. Fails when one request that a library chokes on ends everybody's answers, and again at each retry."""
    link = ScriptedLink([added(number, "x y") for number in (1, 2, 3)], [], [])
    with pytest.raises(ScriptEndedError):
        Loop(RefusesTwo("test", Placement()), link).run()  # type: ignore[arg-type]  # a stand-in for the socket
    (failure,) = (event for event in link.events if isinstance(event, Failure))
    assert (failure.id, failure.code) == (2, ErrorCode.ENGINE_ERROR)
    assert "secret" not in failure.message
    assert sorted(event.id for event in link.events if isinstance(event, Finish)) == [1, 3]


def test_r03_an_answer_that_cannot_be_decoded_fails_alone(capfd: pytest.CaptureFixture[str]) -> None:
    """R3. Fails when a tokenizer's exception ends the engine, its job goes on, or a user's text comes into a log."""
    link = ScriptedLink([added(1, "a secret! b"), added(2, "x y z"), added(3, "secret!")], [], [], [])
    runner = Undecodable()
    with pytest.raises(ScriptEndedError):
        Loop(runner, link).run()  # type: ignore[arg-type]  # a stand-in for the socket
    failures = [event for event in link.events if isinstance(event, Failure)]
    assert {(failure.id, failure.code) for failure in failures} == {
        (number, ErrorCode.ENGINE_ERROR) for number in (1, 3)
    }
    assert [event.id for event in link.events if isinstance(event, Finish)] == [2]
    said = [event.text for event in link.events if isinstance(event, Delta | Finish) and event.id == 2]
    assert "".join(said) == "x y z"
    assert runner.cancelled == [1]  # the third had ended in the runner
    told = capfd.readouterr().err
    assert told.count("an answer ended on") == 2
    assert "secret" not in told + "".join(failure.message for failure in failures)
