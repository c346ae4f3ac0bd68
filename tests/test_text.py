"""Stop strings across token borders, as a property over all ways to cut a text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parley.engine.text import StopMatcher

LETTERS = st.text("ab ", max_size=30)
STOPS = st.lists(st.text("ab ", min_size=1, max_size=5), min_size=0, max_size=3)


@given(st.lists(LETTERS, max_size=12), STOPS)
def test_any_cut_gives_the_text_up_to_the_first_stop(pieces: list[str], stops: list[str]) -> None:
    """Fails when a stop string cut over two tokens is missed, leaks in part, or text after it gets out."""
    matcher = StopMatcher(tuple(stops))
    out = "".join(matcher.push(piece) for piece in pieces) + matcher.flush()
    whole = "".join(pieces)
    matched, text = False, ""
    for character in whole:  # the first stop to be complete ends the answer
        text += character
        ends = [stop for stop in stops if text.endswith(stop)]
        if ends:
            text, matched = text[: -max(map(len, ends))], True
            break
    assert (out, matcher.matched) == (text, matched)


@pytest.mark.parametrize("pieces", [["ab b"], ["a", "b", " b"]])
def test_the_stop_that_is_complete_first_matches(pieces: list[str]) -> None:
    """Fails when a stop string that begins earlier wins over one that ends earlier, if one piece holds both."""
    matcher = StopMatcher(("ab b", "b"))
    assert "".join(matcher.push(piece) for piece in pieces) == "a"
    assert matcher.matched


@given(LETTERS)
def test_without_stops_nothing_is_held_back(text: str) -> None:
    """Fails when streaming stalls although no stop string was asked for."""
    assert StopMatcher(()).push(text) == text


def test_what_cannot_become_a_stop_is_let_through_at_once() -> None:
    """Fails when text waits for longer than a stop string could still begin in it."""
    matcher = StopMatcher(("END",))
    assert [matcher.push(piece) for piece in ("the E", "N", "d ", "E", "ND of it")] == ["the ", "", "ENd ", "", ""]
    assert matcher.matched
