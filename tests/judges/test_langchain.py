"""LangChain's standard tests for chat models, through its OpenAI package.

What is declared absent here is skipped by the suite, one property a feature; each has its reason beside it.
"""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from tests.conftest import Served


class TestChatOpenAI(ChatModelIntegrationTests):
    """The embedded model; the suite judges shapes, not wit."""

    @pytest.fixture(autouse=True)
    async def _service(self, service: Served) -> AsyncIterator[None]:
        type(self).url = f"{service.url}/v1"
        self._clients: list[httpx.AsyncClient] = []
        yield
        for client in self._clients:  # the suite closes none
            await client.aclose()

    url = ""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # LangChain shares one asynchronous client between event loops, and each test here has a loop of its own.
        self._clients.append(httpx.AsyncClient())
        return {
            "base_url": self.url,
            "api_key": "none",
            "model": "pocket",
            "temperature": 0,
            "stream_usage": True,
            "http_async_client": self._clients[-1],
        }

    @property
    def has_tool_calling(self) -> bool:
        return False  # `tools` is refused by its name

    @property
    def supports_json_mode(self) -> bool:
        return False  # any JSON object is given; the suite wants two keys that only a larger model would guess

    @property
    def has_structured_output(self) -> bool:
        return False  # the suite's schemas hold open strings, which a model this small does not end within its context

    @property
    def model_override_value(self) -> str:
        return "pocket"
