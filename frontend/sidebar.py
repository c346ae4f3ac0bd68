"""Beside the conversation: what answers, what it took, and what can be done with the whole."""

import streamlit as st

import downloads
from conversation import Conversation
from prices import Prices, dollars
from session import Session
from standing import FRESH, Watch

LEEWAY = 0.5
"""Seconds by which a browser's clock may be early: a look that finds the last one fresh would leave it for another."""

_FORMATS = {
    "CSV": ("csv", "text/csv", downloads.as_csv),
    "JSON": ("json", "application/json", downloads.as_json),
    "Markdown": ("md", "text/markdown", downloads.as_markdown),
}


def show_spending(conversation: Conversation, prices: Prices | None) -> None:
    """Tokens, and cost where there are prices, of all answers of the session."""
    tokens = sum(usage.total_tokens for usage in conversation.spent)
    cost = f" · {dollars(sum(map(prices.cost, conversation.spent)))}" if prices else ""
    _show_fact("This session", f"{tokens:,} tokens{cost}")
    if conversation.uncounted:
        st.caption(f"{conversation.uncounted} cut short and not counted")


def show_actions(session: Session) -> None:
    """Downloads hold what the page shows without the answer under way; clearing starts anew.

    The files are made now and not by a callable at the click: Streamlit drops what a callable made after two more runs
    of any session, and an answer that is coming is drawn ten times a second.
    """
    conversation = session.conversation
    st.caption("Download")
    for label, (ending, mime, write) in _FORMATS.items():
        st.download_button(
            label,
            data=write(conversation.turns),
            file_name=f"conversation.{ending}",
            mime=mime,
            on_click="ignore",
            disabled=not conversation.turns,
            icon=":material/download:",
            width="stretch",
        )
    st.button(
        "Clear", icon=":material/delete:", on_click=session.clear, disabled=not conversation.turns, width="stretch"
    )


@st.fragment(run_every=FRESH + LEEWAY)
def show_standing(watch: Watch, address: str) -> None:
    """Where the answers come from, and whether they can come now."""
    standing = watch.look()
    if standing.ready:
        st.badge(standing.words, icon=":material/check_circle:", color="green")
    else:
        st.badge(standing.words, icon=":material/error:", color="orange")
    _show_fact("Model", ", ".join(standing.models) or "unknown")
    _show_fact("Address", address)


def _show_fact(name: str, value: str) -> None:
    with st.container(gap=None):
        st.caption(name)
        st.text(value)
