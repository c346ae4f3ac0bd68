"""`POST /tokenize`: token counts before anything is asked."""

from fastapi import APIRouter, Request

from parley.api.chat import Chat, off_loop
from parley.api.completions import chat_of, refuse_unknown_model
from parley.contract.tokenize import Tokenized, TokenizeRequest


def router() -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["Tokens"])

    @routes.post("/tokenize")
    async def tokenize(body: TokenizeRequest, request: Request) -> Tokenized:
        """Token ids of a conversation as the model would read it, or of a bare text."""
        chat = chat_of(request)
        refuse_unknown_model(body.model, chat)
        tokens = await tokens_of(chat, body)
        return Tokenized(count=len(tokens), max_model_len=chat.info.context_length, tokens=tokens)

    return routes


async def tokens_of(chat: Chat, body: TokenizeRequest) -> list[int]:
    """The token ids; nothing is dropped, however long it is."""
    builder = chat.builder
    if body.messages is None:
        text = body.prompt or ""
        return await off_loop(len(text), lambda: builder.text_tokens(text))
    messages = [message.message() for message in body.messages]
    return await off_loop(sum(len(message.content) for message in messages), lambda: builder.tokens(messages))
