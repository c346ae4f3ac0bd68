"""`POST /chat`, BentoML's native route: both published forms onto one `Chat`."""

from starlette.requests import Request
from starlette.responses import Response

from parley.api.chat import Chat, Completion
from parley.api.disconnect import unless_disconnected
from parley.api.terms import dropped, terms_of
from parley.contract.chat import AssistantMessage, ChatReply, ChatRequest, HistoryReply, HistoryRequest, TokenUsage
from parley.engine.engine import Finish
from parley.engine.runner import Sampling


async def reply_to(chat: Chat, body: ChatRequest, request: Request) -> Response:
    """The reply in the form that the request came in.

    Args:
        chat: what answers.
        body: either form of the request.
        request: the request it came in, its body already read; a disconnect cancels the answer.

    Raises:
        ParleyError: what refused the request or failed it.
    """
    work = chat.complete(body.root.messages(), Sampling(), terms_of(request))
    completion = await unless_disconnected(request.receive, work)
    reply = in_form(body, completion)
    return Response(reply.model_dump_json(), media_type="application/json", headers=dropped(completion.prompt))


def in_form(body: ChatRequest, completion: Completion) -> ChatReply:
    """The first answer as the form of the request has it."""
    answer = completion.answers[0]
    if not isinstance(body.root, HistoryRequest):
        return ChatReply(answer.text)
    return ChatReply(HistoryReply(message=AssistantMessage(content=answer.text), token_usage=usage(answer.finish)))


def usage(finish: Finish) -> TokenUsage | None:
    """Tokens as the engine counted them; None where an upstream did not tell."""
    prompt, generated = finish.prompt_tokens, finish.completion_tokens
    if prompt is None or generated is None:
        return None
    return TokenUsage(prompt_tokens=prompt, completion_tokens=generated, total_tokens=prompt + generated)
