"""`POST /chat`, BentoML's native route: both published forms onto one `Chat`."""

from collections.abc import Awaitable, Callable
from typing import Any

from parley.api.chat import Chat, unless_disconnected
from parley.contract.chat import AssistantMessage, ChatReply, ChatRequest, HistoryReply, HistoryRequest, TokenUsage
from parley.engine.runner import Sampling


async def reply_to(chat: Chat, body: ChatRequest, receive: Callable[[], Awaitable[Any]]) -> ChatReply:
    """The reply in the form that the request came in.

    Args:
        chat: what answers.
        body: either form of the request.
        receive: the request's ASGI `receive`, its body already read; a disconnect cancels the answer.

    Raises:
        ParleyError: what refused the request or failed it.
    """
    form = body.root
    completion = await unless_disconnected(receive, chat.complete(form.messages(), Sampling()))
    if not isinstance(form, HistoryRequest):
        return ChatReply(completion.text)
    prompt, answer = completion.finish.prompt_tokens, completion.finish.completion_tokens
    usage = TokenUsage(prompt_tokens=prompt, completion_tokens=answer, total_tokens=prompt + answer)
    return ChatReply(HistoryReply(message=AssistantMessage(content=completion.text), token_usage=usage))
