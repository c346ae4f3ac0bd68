"""The browser tab that a page is shown in, and the name that it keeps over a reload.

`sessionStorage` is the tab's own: no other tab, page or link has what is in it, and it ends with the tab.
"""

import re
import secrets

import streamlit as st

_KEY = "tab"
_KEEPS = """
export default function ({ data, setStateValue }) {
  try {
    const kept = sessionStorage.getItem("parley");
    if (kept === null) sessionStorage.setItem("parley", data);
    else if (kept !== data) setStateValue("name", kept);
  } catch {
    // A browser that keeps nothing for pages: a reload begins anew.
  }
}
"""

_keeper = st.components.v2.component("parley.tab", js=_KEEPS)


def kept_name() -> str | None:
    """The name that the tab had already when it was told another; None while it has said nothing."""
    name = st.session_state.get(_KEY, {}).get("name")
    return name if isinstance(name, str) and re.fullmatch(r"[\w-]{22}", name) else None


def new_name() -> str:
    """A name that nobody can guess: who has it is shown the conversation."""
    return secrets.token_urlsafe(16)


def keep_name(name: str) -> None:
    """Tells the tab its name, which it takes if it has none. Draws nothing."""
    _keeper(key=_KEY, data=name, on_name_change=_ignore)


def _ignore() -> None:
    """The page runs again by itself, and asks for the name."""
