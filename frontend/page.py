"""The page, whatever answers."""

import os
from collections.abc import Callable

import streamlit as st

import sidebar
import tab
import transcript
from backend import Backend
from session import Session
from sessions import Sessions
from settings import Settings, SettingsError

SUGGESTIONS = [
    "Who is Batman?",
    "What is a splash page?",
    "Who created Spider-Man?",
    "Recommend me a graphic novel.",
]


def show_page(connect: Callable[[Settings], Backend], address: Callable[[Settings], str]) -> None:
    """One run of the page; a wrong setting ends it with the line that names it.

    Args:
        connect: makes the backend; called once a session. May raise `SettingsError`.
        address: what to call the place where answers come from.
    """
    # An emoji, because Streamlit fetches a Material icon for the tab from the internet.
    st.set_page_config(page_title="Parley", page_icon="📖")
    try:
        settings = _settings()
        session = _session(connect, settings)
    except SettingsError as error:
        st.error(str(error), icon=":material/settings:")
        st.stop()
    session.settle()
    st.title("Parley", anchor=False)
    st.caption("Talk about comics with a language model. What it says may be wrong.")
    _show_conversation(session, settings)
    _show_input(session, settings.max_input_chars)
    _show_sidebar(session, settings, address(settings))
    tab.keep_name(st.session_state.tab_name)


def _settings() -> Settings:
    """The settings, read once a session."""
    if "settings" not in st.session_state:
        st.session_state.settings = Settings.from_env(os.environ)
    chosen: Settings = st.session_state.settings
    return chosen


@st.cache_resource
def _sessions() -> Sessions:
    return Sessions()


def _session(connect: Callable[[Settings], Backend], settings: Settings) -> Session:
    """This tab's session; after a reload the one that it had before, once the tab has told its name."""
    state, sessions = st.session_state, _sessions()
    if "session" not in state:
        state.session, state.tab_name = Session(connect(settings)), tab.new_name()
    had = tab.kept_name()
    if had is not None and had != state.tab_name:
        sessions.forget(state.tab_name)
        kept = sessions.find(had)
        state.tab_name = had
        if kept is not None and not state.session.conversation.turns:
            state.session = kept
    session: Session = state.session
    sessions.keep(state.tab_name, session)
    return session


def _show_conversation(session: Session, settings: Settings) -> None:
    conversation = session.conversation
    if session.answer is not None:
        transcript.show_turns(conversation.asked, settings.prices)
        transcript.show_answer(session.answer)
        return
    transcript.show_turns(conversation.turns, settings.prices)
    if conversation.failure is not None:
        transcript.show_failure(conversation.failure)
    if conversation.unanswered:
        st.button("Retry", icon=":material/refresh:", on_click=session.retry)
    if not conversation.turns:
        _show_suggestions(session)


def _show_suggestions(session: Session) -> None:
    columns = st.columns(2)
    for index, question in enumerate(SUGGESTIONS):
        columns[index % 2].button(question, on_click=session.suggest, args=(question,), width="stretch")


def _show_input(session: Session, max_chars: int) -> None:
    def submit() -> None:
        if text := st.session_state.question.strip():
            session.ask(text)

    st.chat_input("Ask about comics", key="question", max_chars=max_chars, on_submit=submit)


def _show_sidebar(session: Session, settings: Settings, address: str) -> None:
    """The standing comes last on the page: asking for it may take seconds, and nothing may wait for that."""
    with st.sidebar:
        standing = st.container()
        sidebar.show_spending(session.conversation, settings.prices)
        sidebar.show_actions(session)
        with standing:
            sidebar.show_standing(session.watch, address)
