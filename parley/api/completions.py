"""OpenAI's routes: `POST /v1/chat/completions`, `GET /v1/models`, `GET /v1/models/{id}`."""

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from parley.api.chat import Chat, unless_disconnected
from parley.api.sse import DONE, KEEP_ALIVE, Chunks, error_frame
from parley.contract.chat import Message
from parley.contract.errors import ErrorCode, ParleyError
from parley.contract.openai import (
    ChatCompletion,
    ChatCompletionRequest,
    Choice,
    CompletionMessage,
    ContextPolicy,
    Model,
    ModelList,
    PromptTokensDetails,
    Usage,
)
from parley.engine.engine import Delta, Event, Failure, Finish
from parley.engine.runner import Sampling
from parley.prompt import Prompt

DROPPED_HEADER = "x-context-dropped-messages"


def router(created: int) -> APIRouter:
    """The routes.

    Args:
        created: Unix time of the service's start, shown as the model's.
    """
    routes = APIRouter(prefix="/v1", tags=["OpenAI"])

    @routes.post("/chat/completions", response_model=ChatCompletion)
    async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
        """A chat completion; with `stream` as server-sent events."""
        chat = chat_of(request)
        refuse_unknown_model(body.model, chat)
        if body.stream_options is not None and not body.stream:
            raise ParleyError(ErrorCode.INVALID_VALUE, "stream_options: only allowed with stream", "stream_options")
        if body.stream:
            return await stream(chat, body)
        completion = await unless_disconnected(request.receive, chat.complete(*conversation(body)))
        answer = ChatCompletion(
            id=new_id(),
            created=int(time.time()),
            model=chat.served,
            choices=[
                Choice(message=CompletionMessage(content=completion.text), finish_reason=completion.finish.reason)
            ],
            usage=usage(completion.finish, completion.prompt),
        )
        return Response(answer.model_dump_json(), media_type="application/json", headers=dropped(completion.prompt))

    @routes.get("/models")
    async def models(request: Request) -> ModelList:
        """The served model, with what its engine honours."""
        return ModelList(data=[describe(chat_of(request), created)])

    @routes.get("/models/{model:path}")
    async def model(model: str, request: Request) -> Model:
        """One model by its id."""
        chat = chat_of(request)
        refuse_unknown_model(model, chat)
        return describe(chat, created)

    return routes


def chat_of(request: Request) -> Chat:
    """The `Chat` of the worker that serves the request."""
    chat: Chat = request.app.state.chat
    return chat


def conversation(body: ChatCompletionRequest) -> tuple[list[Message], Sampling, ContextPolicy | None]:
    """A request as `Chat` takes it."""
    return [message.message() for message in body.messages], sampling(body), body.context_policy


def sampling(body: ChatCompletionRequest) -> Sampling:
    """How the request wants its tokens chosen; a penalty of zero is none."""
    return Sampling(
        max_tokens=body.token_limit(),
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        seed=body.seed,
        repetition_penalty=body.repetition_penalty,
        frequency_penalty=body.frequency_penalty or None,
        presence_penalty=body.presence_penalty or None,
        stop=body.stop_strings(),
    )


async def stream(chat: Chat, body: ChatCompletionRequest) -> StreamingResponse:
    """A streamed answer; what fails before its first event is still answered with a status of its own."""
    stack = AsyncExitStack()
    try:
        prompt, events = await stack.enter_async_context(chat.answer(*conversation(body)))
        first = await anext(events)
        if isinstance(first, Failure):
            raise ParleyError(first.code, first.message)
    except BaseException:
        await stack.aclose()
        raise
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    chunks = Chunks(new_id(), int(time.time()), chat.served, include_usage)
    frames = in_context(stack, sse(chunks, prompt, first, events, include_usage))
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no", **dropped(prompt)}
    return StreamingResponse(frames, media_type="text/event-stream", headers=headers)


async def in_context(stack: AsyncExitStack, frames: AsyncIterator[str]) -> AsyncGenerator[str, None]:
    """Frames whose context is left when they end or their reader goes away."""
    async with stack:
        async for frame in frames:
            yield frame


async def sse(
    chunks: Chunks, prompt: Prompt, first: Event, events: AsyncIterator[Event], include_usage: bool
) -> AsyncGenerator[str, None]:
    """Frames of one answer, the last one terminal: `[DONE]` or an error."""
    yield chunks.role()
    event = first
    while isinstance(event, Delta):
        if event.text:
            yield chunks.text(event.text)
        elif not event.tokens:
            yield KEEP_ALIVE
        event = await anext(events)
    if isinstance(event, Failure):
        yield error_frame(ParleyError(event.code, event.message))
        return
    last = chunks.text(event.text) if event.text else ""
    last += chunks.finish(event.reason)
    yield last + (chunks.usage(usage(event, prompt)) if include_usage else "") + DONE


def usage(finish: Finish, prompt: Prompt) -> Usage:
    """Tokens as the engine counted them."""
    return Usage(
        prompt_tokens=finish.prompt_tokens,
        completion_tokens=finish.completion_tokens,
        total_tokens=finish.prompt_tokens + finish.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(
            cached_tokens=finish.cached_tokens,
            dropped_messages=prompt.dropped_messages,
            dropped_tokens=prompt.dropped_tokens,
        ),
    )


def dropped(prompt: Prompt) -> dict[str, str]:
    """The header that tells what the context policy left out."""
    return {DROPPED_HEADER: str(prompt.dropped_messages)} if prompt.dropped_tokens else {}


def refuse_unknown_model(model: str | None, chat: Chat) -> None:
    """Refuses a model that is not served here."""
    if model not in (None, "", chat.served):
        raise ParleyError(ErrorCode.MODEL_NOT_FOUND, f"This model is not served here; {chat.served} is.", "model")


def describe(chat: Chat, created: int) -> Model:
    """The served model in OpenAI's shape, with our additions."""
    info = chat.info
    return Model(
        id=chat.served,
        created=created,
        engine=info.engine,
        engine_reason=info.reason,
        device=info.device,
        dtype=info.dtype,
        context_length=info.context_length,
        parameters=info.parameters,
        streams=info.streams,
    )


def new_id() -> str:
    """An id for one completion."""
    return f"chatcmpl-{uuid.uuid4().hex}"
