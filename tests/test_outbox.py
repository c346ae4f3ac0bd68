"""Outbox: what of an answer may wait, and for how long."""

from hypothesis import given
from hypothesis import strategies as st

from parley.contract.errors import ErrorCode
from parley.engine.engine import Delta, Event, Failure, Finish
from parley.engine.outbox import HOLD_SECONDS, Outbox

END = Finish(1, "!", "stop", 1, 3, None)


def sent(box: Outbox, now: float, *events: Event) -> list[Event]:
    """What goes out when these events have come by now."""
    for event in events:
        box.put(event)
    return box.take(now)


def test_the_first_text_is_never_held() -> None:
    """Fails when the first token of an answer waits for the tokens of others."""
    box = Outbox()
    assert sent(box, 10, Delta(1, "a", 1)) == [Delta(1, "a", 1)]
    now = 10 + HOLD_SECONDS / 2
    assert sent(box, now, Delta(1, "b", 1), Delta(2, "", 1)) == [Delta(2, "", 1)]
    assert sent(box, now, Delta(2, "c", 1)) == [Delta(2, "c", 1)]


def test_tokens_of_a_moment_share_a_frame() -> None:
    """Fails when a fast model's tokens cost a frame each, or when they wait for longer than the moment."""
    box = Outbox()
    sent(box, 10, Delta(1, "a", 1))
    assert sent(box, 10 + HOLD_SECONDS / 3, Delta(1, "b", 1)) == []
    assert sent(box, 10 + HOLD_SECONDS * 1.01, Delta(1, "c", 2)) == [Delta(1, "bc", 3)]
    assert sent(box, 10 + HOLD_SECONDS * 2.02, Delta(1, "d", 1)) == [Delta(1, "d", 1)]


def test_an_end_takes_along_what_is_held_of_its_answer_only() -> None:
    """Fails when an answer ends late, without its last words, or wakes the readers of all others."""
    box = Outbox()
    sent(box, 10, Delta(1, "a", 1), Delta(2, "x", 1))
    assert sent(box, 10, Delta(1, "b", 1), Delta(2, "y", 1), END) == [Delta(1, "b", 1), END]
    failure = Failure(2, ErrorCode.ENGINE_ERROR, "broke")
    assert sent(box, 10, failure) == [Delta(2, "y", 1), failure]


def test_a_flush_gives_all_that_is_held() -> None:
    """Fails when tokens that are there wait although all are let go, as the loop does before a prompt is read."""
    box = Outbox()
    sent(box, 10, Delta(1, "a", 1))
    assert sent(box, 10, Delta(1, "b", 1)) == []
    assert box.flush() == [Delta(1, "b", 1)]


def test_what_is_held_of_a_cancelled_answer_is_dropped() -> None:
    """Fails when a long-lived engine keeps the last tokens of every client that left."""
    box = Outbox()
    sent(box, 10, Delta(1, "a", 1), Delta(1, "b", 1))
    sent(box, 10, Delta(1, "c", 1))
    box.forget(1)
    assert box.flush() == []


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from(["", "a", "é"]), st.floats(0, 0.02)), max_size=60))
def test_every_answer_comes_out_whole_and_in_order(steps: list[tuple[int, str, float]]) -> None:
    """Fails when holding loses, doubles or reorders a piece of an answer."""
    box, now, out = Outbox(), 5.0, list[Event]()
    for number, text, pause in steps:
        now += pause
        out += sent(box, now, Delta(number, text, 1))
    ends = [Finish(number, "", "stop", 1, 1, None) for number in (1, 2, 3)]
    out += sent(box, now, *ends)
    for number in (1, 2, 3):
        own = [event for event in out if event.id == number]
        assert own[-1] == ends[number - 1]
        deltas = [event for event in own[:-1] if isinstance(event, Delta)]
        assert len(deltas) == len(own) - 1
        assert "".join(delta.text for delta in deltas) == "".join(text for other, text, _ in steps if other == number)
        assert sum(delta.tokens for delta in deltas) == sum(other == number for other, _, _ in steps)
