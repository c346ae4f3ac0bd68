"""Frames between worker and engine process, and the watch over their beats."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parley.contract.errors import ErrorCode
from parley.engine.engine import Delta, Failure, Finish
from parley.engine.runner import Job, Sampling
from parley.engine.watch import Limits, Watch
from parley.engine.wire import Add, Beat, Cancel, Command, Events, Frames, LoadFailed, Report, frame

COMMANDS = [Add(Job(7, [1, 2, 3], Sampling(seed=4, stop=("a", "b")))), Cancel(7)]
REPORTS = [
    LoadFailed("no"),
    Beat(3, True),
    Events([Delta(1, "é", 1), Finish(2, "", "stop", 3, 4, 5), Failure(3, ErrorCode.ENGINE_ERROR, "broke")]),
]


@pytest.mark.parametrize(("kind", "messages"), [(Command, COMMANDS), (Report, REPORTS)])
@given(data=st.data())
def test_frames_survive_any_cut(kind: object, messages: list[object], data: st.DataObject) -> None:
    """Fails when a frame that arrives in pieces is lost, doubled or decoded early."""
    stream = b"".join(frame(message) for message in messages)  # type: ignore[arg-type]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    frames: Frames[object] = Frames(kind)
    assert [message for piece in pieces for message in frames.feed(piece)] == messages


def test_a_silent_process_is_hung_and_a_beating_one_is_not() -> None:
    """Fails when a stopped engine goes unnoticed, or an idle one is killed."""
    watch = Watch(Limits(load=60, silence=5, step=100), now=0)
    assert not watch.fault(59)
    watch.loaded(59)
    watch.beat(0, False, 63)
    assert not watch.fault(67.9)
    assert "has not answered for 5 s" in watch.fault(68.1)


def test_a_step_that_does_not_end_is_hung_though_the_process_beats() -> None:
    """Fails when an endless loop inside a model step leaves its clients waiting for ever."""
    watch = Watch(Limits(step=10, silence=5), now=0)
    watch.loaded(0)
    for second in range(1, 31):
        watch.beat(steps=second if second < 15 else 15, busy=True, now=second)
        assert bool(watch.fault(second)) == (second > 25), second


def test_a_step_that_holds_the_interpreter_is_not_hung_until_it_takes_too_long() -> None:
    """Fails when an engine is killed in the middle of a long prompt, because no thread of it can beat meanwhile."""
    watch = Watch(Limits(step=100, silence=5), now=0)
    watch.loaded(0)
    watch.beat(0, False, 1)
    for second in range(2, 120):
        watch.works(second)
        assert bool(watch.fault(second)) == (second > 101), second
    assert "a step of the engine took more than 100 s" in watch.fault(119)


def test_a_model_that_never_loads_is_hung() -> None:
    """Fails when a load that blocks is waited for without end."""
    assert "did not load in 60 s" in Watch(Limits(load=60), now=0).fault(61)
