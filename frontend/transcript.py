"""The conversation on the page: what was said, the answer that is coming, and what went wrong."""

import time

import streamlit as st

from answer import Answer, Outcome
from conversation import Turn
from display import shown
from parley.contract.errors import ParleyError
from parley.contract.openai import Usage
from prices import Prices, dollars
from trouble import advice, meaning

AVATARS = {"user": ":material/person:", "assistant": ":material/auto_stories:"}
REDRAW = 0.1
"""Seconds between two looks at an answer."""
SLOW_AFTER = 5
"""Seconds without a word after which the page says how long it has been."""


def show_turns(turns: list[Turn], prices: Prices | None) -> None:
    """What was said: a question as plain text, an answer with its Markdown."""
    for turn in turns:
        role, text = turn.message
        with st.chat_message(role, avatar=AVATARS[role]):
            if role == "user":
                st.text(text)
            else:
                st.markdown(shown(text) or "*(an empty answer)*")
                st.caption(_note(turn, prices))


@st.fragment(run_every=REDRAW)
def show_answer(answer: Answer) -> None:
    """The answer under way. Redraws itself, and the whole page once it has ended.

    The stop button is an ordinary one and not that of `st.chat_input(submit_mode="stop")`, which kills the page's run:
    nothing would be left to draw what was counted, and the way to try again.
    """
    if answer.look() is not Outcome.RUNNING:
        st.rerun()
    with st.chat_message("assistant", avatar=AVATARS["assistant"]):
        st.markdown(shown(answer.text) or _waiting(time.monotonic() - answer.started))
        st.button("Stop", icon=":material/stop_circle:", key="stop", on_click=answer.stop)


def show_failure(failure: ParleyError) -> None:
    """What went wrong with the last answer, in a person's words first."""
    told = f"**{meaning(failure)}** {failure.message}\n\n{advice(failure)}"
    st.error(shown(told), icon=":material/error:")  # all of it at once: what a line is depends on what is before it


def _waiting(seconds: float) -> str:
    return "*Thinking…*" if seconds < SLOW_AFTER else f"*Waiting for the first word for {seconds:.0f} s*"


def _note(turn: Turn, prices: Prices | None) -> str:
    """What an answer took, or why that is not known, and whether it was cut."""
    if not turn.whole:
        return "Cut short: tokens not counted"
    counted = _counted(turn.usage, prices) if turn.usage else "Tokens not counted"
    return shown(f"{counted} · {turn.cut}" if turn.cut else counted)


def _counted(usage: Usage, prices: Prices | None) -> str:
    cost = f" · {dollars(prices.cost(usage))}" if prices else ""
    return f"{usage.prompt_tokens:,} tokens read · {usage.completion_tokens:,} written{cost}{_dropped(usage)}"


def _dropped(usage: Usage) -> str:
    """What the service left out of a conversation that is longer than the model can read."""
    details = usage.prompt_tokens_details
    if not (details.dropped_messages or details.dropped_tokens):
        return ""
    what = f"{details.dropped_messages} messages" if details.dropped_messages else f"{details.dropped_tokens} tokens"
    return f" · the oldest {what} were left out to fit the model"
