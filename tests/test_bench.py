"""The benchmark's own arithmetic, and one tiny run against a real service."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench import plan, report
from bench.chart import bars
from bench.figures import Figure, figures
from bench.limits import decode_limit
from bench.line import Line
from bench.percentile import percentile
from bench.record import Record
from bench.summary import Outcome, Usage, other_share, summarize
from bench.token_cost import WORDS, in_words
from bench.trials import Absence, Start, Trial, rounds, typical
from bench.workload import Workload
from parley.contract.errors import ParleyError
from tests.faulty import HALF, WHOLE
from tests.scripted import scripted, streams

ROOT = Path(__file__).resolve().parents[1]
WORKLOAD = Workload("chat", users=3, window=10.0, shapes=((4,), (2, 1)), answer_tokens=8)
USAGE = Usage(server_cpu=2.0, api_cpu=0.5, load_cpu=0.25, machine_cpu=3.25, resident=5_000_000)


def _outcome(*records: Record) -> Outcome:
    return Outcome(records, window=10.0, usage=USAGE)


def _trial(model: str, contestant: str, workload: str, throughput: float, number: int = 0) -> Trial:
    summary = replace(summarize(_outcome(Record(0, 0.0, [1.0], done=True))), throughput=throughput)
    return Trial(model, contestant, workload, number, summary)


@pytest.mark.parametrize(("percent", "value"), [(0, 1.0), (50, 2.5), (95, 3.85), (99, 3.97), (100, 4.0)])
def test_percentiles_are_interpolated(percent: int, value: float) -> None:
    """Fails when p99 of a few values becomes simply their largest, or an index runs over the end."""
    assert percentile([4.0, 1.0, 3.0, 2.0], percent) == pytest.approx(value)


def test_a_percentile_of_nothing_is_refused() -> None:
    """Fails when an empty trial gets a number, as if it had been fast."""
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_the_same_seed_asks_the_same() -> None:
    """Fails when contestants of one run get different questions or different times."""
    again = replace(WORKLOAD, rate=3.0)
    assert WORKLOAD.turns(7) == replace(WORKLOAD).turns(7)
    assert again.arrivals() == replace(again).arrivals()
    assert replace(again, seed=1).arrivals() != again.arrivals()


def test_conversations_have_the_lengths_that_were_asked_for() -> None:
    """Fails when the cycle of lengths or the opening is lost."""
    assert [len(text.split()) for text in WORKLOAD.turns(0)] == [4]
    assert [len(text.split()) for text in WORKLOAD.turns(1)] == [2, 1]
    assert replace(WORKLOAD, opening="slow ").turns(1)[0].startswith("slow ")
    assert not replace(WORKLOAD, opening="slow ").turns(1)[1].startswith("slow ")


def test_no_two_users_share_a_conversation() -> None:
    """Fails when users ask the same things: a prefix cache would then answer what was to be measured."""
    users = [WORKLOAD.of_user(user) for user in range(3)]
    drawn = [next(numbers) for _ in range(5) for numbers in users]
    assert sorted(drawn) == list(range(15))


async def test_a_server_that_closes_after_each_answer_is_asked_again() -> None:
    """Fails when every second request to llama.cpp counts as broken, or an answer cut on its way counts as whole."""
    with scripted(streams(WHOLE)) as server:
        line = Line(server.url)
        assert [(await line.ask({}, lambda _: None)).text for _ in range(3)] == ["all of it"] * 3
        assert len(server.requests) == 3
    with scripted(streams(HALF)) as server:
        with pytest.raises(ParleyError, match="DONE"):
            await Line(server.url).ask({}, lambda _: None)
        assert len(server.requests) == 1


def test_arrivals_keep_the_rate_and_the_window() -> None:
    """Fails when the open loop is faster or slower than it says."""
    times = replace(WORKLOAD, rate=50.0, window=100.0).arrivals()
    assert len(times) == pytest.approx(5000, rel=0.05)
    assert times == sorted(times)
    assert times[0] > 0.0
    assert times[-1] < 100.0


def test_a_closed_loop_has_no_arrivals() -> None:
    """Fails when a closed loop is silently driven as an open one."""
    with pytest.raises(ValueError, match="closed loop"):
        WORKLOAD.arrivals()


def test_pieces_that_hold_several_tokens_are_counted_as_the_server_says() -> None:
    """Fails when a server that frames many tokens at once looks slow, or one that says nothing cannot be measured."""
    framed = Record(0, 0.0, [1.0, 2.0], done=True, prompt_tokens=5, completion_tokens=10)
    silent = Record(0, 0.0, [1.0, 2.0], done=True)
    assert summarize(_outcome(framed)).throughput == pytest.approx(5.0)
    assert summarize(_outcome(framed)).tokens_per_piece == 5.0
    assert summarize(_outcome(silent)).throughput == pytest.approx(1.0)


def test_a_cut_answer_counts_as_far_as_it_came() -> None:
    """Fails when slow servers lose the tokens of answers that the end of the window cut off."""
    whole = Record(0, 0.0, [1.0, 2.0], done=True, completion_tokens=8)
    cut = Record(0, 2.0, [3.0, 4.0])
    assert summarize(_outcome(whole, cut)).throughput == pytest.approx(16 / 4.0)


def test_throughput_runs_to_the_last_arrival() -> None:
    """Fails when a server that gives whole answers is judged by where the window happened to end."""
    answers = [Record(0, at - 3.0, [at], done=True, completion_tokens=128) for at in (3.0, 6.0, 9.0)]
    assert summarize(_outcome(*answers)).throughput == pytest.approx(3 * 128 / 9.0)


def test_who_still_waits_makes_the_wait_a_lower_bound() -> None:
    """Fails when requests that were never answered vanish from the waits, which makes the slowest server look quick."""
    summary = summarize(_outcome(Record(0, 0.0, [1.0], done=True), Record(0, 0.0), Record(0, 4.0)))
    assert summary.unanswered == 2
    assert summary.first_token[0] == pytest.approx(6000.0)
    assert " >6000/" in report.row("slow", summary)


def test_failures_are_counted_and_nothing_else_of_them() -> None:
    """Fails when a server that refuses everything at once wins on latency."""
    summary = summarize(_outcome(Record(0, 0.0, error="queue_full: full")))
    assert (summary.failed, summary.completed, summary.throughput, summary.first_token) == (1, 0, 0.0, [])
    assert "queue_full: full" in report.row("refuser", summary)


def test_later_turns_are_kept_apart() -> None:
    """Fails when warm turns flatter the cold ones, or the other way round."""
    summary = summarize(_outcome(Record(0, 0.0, [2.0], done=True), Record(1, 2.0, [2.5], done=True)))
    assert summary.first_token[0] == pytest.approx(2000.0)
    assert summary.later_first_token[0] == pytest.approx(500.0)


def test_cpu_is_divided_among_the_tokens() -> None:
    """Fails when the cost of a token is not in microseconds, or counts the wrong processes."""
    summary = summarize(_outcome(Record(0, 0.0, [1.0], done=True, completion_tokens=1000)))
    assert summary.api_cpu_per_token == pytest.approx(500.0)
    assert summary.server_cpu_per_token == pytest.approx(2000.0)
    assert summary.load_share == pytest.approx(0.025)
    assert summary.other_share == pytest.approx(0.1)


def test_what_cannot_be_seen_is_not_zero() -> None:
    """Fails when a server on another machine seems to cost nothing."""
    unseen = replace(USAGE, server_cpu=None, api_cpu=None, machine_cpu=None, resident=None)
    summary = summarize(Outcome([Record(0, 0.0, [1.0], done=True)], 10.0, unseen))
    assert other_share(unseen, 10.0) is None
    assert (summary.api_cpu_per_token, summary.server_cpu_per_token, summary.resident_mb) == (None, None, None)


def test_echoed_bytes_are_counted_as_words() -> None:
    """Fails when the echo engine's byte tokens make its API look five times as cheap."""
    counted = in_words(_outcome(Record(0, 0.0, [1.0], done=True, completion_tokens=5 * WORDS), Record(0, 0.0, [1.0])))
    assert [record.tokens for record in counted.records] == [WORDS, 1]


def test_the_typical_round_is_a_real_one() -> None:
    """Fails when figures of different rounds are mixed, or contestants of one workload are torn apart."""
    events = [
        _trial("S", "a", "8 users", 30.0, 0),
        _trial("S", "a", "32 users", 5.0, 0),
        _trial("S", "b", "8 users", 20.0, 0),
        _trial("S", "a", "8 users", 10.0, 1),
        _trial("S", "a", "8 users", 20.0, 2),
    ]
    found = typical([*events, Absence("S", "c", "not installed"), Start("S", "a", 0, 1.5)])
    assert [(trial.contestant, trial.workload) for trial in found] == [
        ("a", "8 users"),
        ("b", "8 users"),
        ("a", "32 users"),
    ]
    assert found[0].summary.throughput == 20.0


def test_contestants_take_turns() -> None:
    """Fails when one contestant always runs first, or an absent one stops the others."""
    from bench.contestant import Contestant, NotStarted

    class Stub:
        def __init__(self, name: str) -> None:
            self.name = name

        def start(self) -> float:
            return 1.0

        def measure(self, workload: Workload) -> Outcome:
            return _outcome(Record(0, 0.0, [1.0], done=True))

        def settle(self) -> None: ...

        def stop(self) -> None: ...

    def absent(_folder: Path, _log: Path) -> Contestant:
        raise NotStarted("not installed")

    field = {"a": lambda _f, _l: Stub("a"), "b": lambda _f, _l: Stub("b"), "c": absent}
    events = list(rounds("S", Path(), field, [WORKLOAD], 2, Path()))
    assert [event.contestant for event in events if isinstance(event, Start)] == ["a", "b", "b", "a"]
    assert [event.reason for event in events if isinstance(event, Absence)] == ["not installed"]


def test_figures_name_what_was_reached() -> None:
    """Fails when a ratio is turned round, or a missing contestant counts as beaten."""
    events = [
        _trial("S", "Parley OpenVINO fp32", "32 users", 900.0),
        _trial("S", "raw OpenVINO fp32", "32 users", 1000.0),
        _trial("S", "plain FastAPI", "32 users", 0.0),
    ]
    found = {figure.name: figure for figure in figures(events)}
    ratio = found["S, 32 users: throughput of Parley OpenVINO fp32 / raw OpenVINO fp32"]
    assert (ratio.value, ratio.met) == (0.9, True)
    assert not any("plain" in name for name in found)
    assert not Figure("seconds", 6.0, 5.0, at_least=False).met


def test_a_disturbed_run_says_so() -> None:
    """Fails when a run beside other programs passes for a measurement."""
    quiet = _trial("S", "a", "8 users", 1.0)
    noisy = replace(quiet, summary=replace(quiet.summary, other_share=1.5))
    assert report.disturbance([quiet]) == ""
    assert "between 0.10 and 1.50 of a core" in report.disturbance([quiet, noisy])


def test_a_server_that_dies_is_told(tmp_path: Path) -> None:
    """Fails when a contestant that crashes under load ends the whole run, or counts as merely slow."""
    from bench.contestant import NotStarted
    from bench.load import Target
    from bench.server import Server

    server = Server(
        "dead", [sys.executable, "-c", "raise SystemExit(3)"], Target("http://127.0.0.1:9"), tmp_path / "log"
    )
    with pytest.raises(NotStarted, match="status 3"):
        server.start()


def test_a_decode_step_is_bound_by_memory_or_by_arithmetic() -> None:
    """Fails when the limit in the documentation is not that of its formula."""
    assert decode_limit(100, 4, 1, bandwidth=4000.0, operations=1e9) == pytest.approx(10.0)
    assert decode_limit(100, 4, 1000, bandwidth=4000.0, operations=1e6) == pytest.approx(5000.0)


def test_a_chart_is_well_formed() -> None:
    """Fails when a name breaks the SVG."""
    from xml.etree import ElementTree

    root = ElementTree.fromstring(bars("S & M", "tokens/s", {"Parley <echo>": 2.0, "other": 0.0}))
    assert [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")][1] == "Parley <echo>"


def test_every_model_has_workloads() -> None:
    """Fails when a model is added to one table and not to the other."""
    for model in plan.WINDOWS:
        assert all(workload.window == 1.0 for workload in plan.workloads(model, 1.0))


def test_a_run_against_the_echo_service(tmp_path: Path) -> None:
    """Fails when load generator, client and service do not fit together, or a run leaves processes behind."""
    from bench.crowd import drive
    from bench.load import Target
    from bench.server import Server

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "bentoml", "serve", "service:Parley", "--host", "127.0.0.1", "--port", port]
    environment = {"PARLEY_ENGINE": "echo", "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(tmp_path)}
    target = Target(f"http://127.0.0.1:{port}")
    server = Server("echo", command, target, tmp_path / "log", environment, "parley.engine.loop")
    workload = Workload("echo", users=9, window=3.0, shapes=((5,), (3, 2)), answer_tokens=4)
    assert server.start() > 0.0
    try:
        summary = summarize(server.measure(workload))
        watched = drive(target, replace(workload, rate=20.0), lambda: None, lambda: None)
        server.settle()
    finally:
        server.stop()
    assert summary.failed == 0, summary.first_error
    assert summary.completed > 9
    assert summary.api_cpu_per_token is not None
    assert 0.0 < summary.api_cpu_per_token < (summary.server_cpu_per_token or 0.0)
    assert {record.turn for record in watched.records if record.done} == {0, 1}
    line = json.loads(report.json_line({}, [Trial("S", "echo", "echo", 0, summary)], [], {}, {}))
    assert line["trials"][0]["summary"]["completed"] == summary.completed
    assert not _listens(int(port))


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_command_line_tells_its_models() -> None:
    """Fails when a misspelt model is run as nothing, with an empty result."""
    command = [sys.executable, "-m", "bench", "--models", "XXL"]
    child = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert child.returncode == 2
    assert "no such model: XXL" in child.stderr
