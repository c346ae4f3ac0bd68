"""LangChain's standard tests for chat models, through its OpenAI package.

What is declared absent here is skipped by the suite, one property a feature; each has its reason beside it.
"""

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from tests.conftest import Served


class TestChatOpenAI(ChatModelIntegrationTests):
    """The embedded model; the suite judges shapes, not wit."""

    @pytest.fixture(autouse=True)
    def _service(self, service: Served) -> None:
        type(self).url = f"{service.url}/v1"

    url = ""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"base_url": self.url, "api_key": "none", "model": "pocket", "temperature": 0, "stream_usage": True}

    @property
    def has_tool_calling(self) -> bool:
        return False  # models this small call no tools: `tools` is refused by its name

    @property
    def supports_json_mode(self) -> bool:
        return False  # any JSON object is given; the suite wants two keys that only a larger model would guess

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        return {"method": "json_schema"}

    @property
    def has_structured_output(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "pocket"
