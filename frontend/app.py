"""The Streamlit client of a Parley service: `streamlit run frontend/app.py`."""

from page import show_page
from parley.client import Client

show_page(
    connect=lambda settings: Client(settings.url, settings.api_key),
    address=lambda settings: settings.url,
)
