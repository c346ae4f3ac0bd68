"""The Streamlit client of a Parley service: `streamlit run frontend/app.py`."""

from page import show_page
from parley.client import Client
from settings import Settings, SettingsError


def connect(settings: Settings) -> Client:
    """A client of the service; raises `SettingsError` for what it cannot use."""
    try:
        return Client(settings.url, settings.api_key)
    except ValueError as error:
        raise SettingsError(str(error)) from error


show_page(connect=connect, address=lambda settings: settings.url)
