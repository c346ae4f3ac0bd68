"""The same page without a service: `streamlit run frontend/monolith.py` answers from an engine of its own."""

import os

import streamlit as st

from local import LocalBackend
from page import show_page
from parley.engine.model import ModelError
from parley.serving import create_chat
from parley.settings import Settings, SettingsError


@st.cache_resource(show_spinner="Preparing the model…")
def engine() -> LocalBackend:
    """The engine that all sessions share; it holds no conversation."""
    return LocalBackend(create_chat(Settings.from_env(os.environ)))


try:
    show_page(connect=lambda _: engine(), address=lambda _: "this process")
except (ModelError, SettingsError) as error:
    st.error(str(error), icon=":material/error:")
