"""OpenAI's routes: `POST /v1/chat/completions`, `GET /v1/models`, `GET /v1/models/{id}`."""

import time
import uuid
from collections.abc import Sequence

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Receive

from parley.api.chat import Answer, Chat, Completion
from parley.api.disconnect import unless_disconnected
from parley.api.sse import DONE, KEEP_ALIVE, Chunks, error_frame
from parley.api.streamed import Streamed, streamed
from parley.api.terms import Terms, dropped, terms_of
from parley.api.usage import combined, usage
from parley.contract.errors import ErrorCode, ParleyError
from parley.contract.openai import (
    ChatCompletion,
    ChatCompletionRequest,
    Choice,
    ChoiceLogprobs,
    CompletionMessage,
    Model,
    ModelList,
    TokenLogprob,
    TopLogprob,
)
from parley.engine import engine
from parley.engine.engine import Delta, Event, Failure, Finish
from parley.engine.runner import EVERY_TOKEN, Sampling
from parley.prompt import Passage, Prompt

SERVED_BY_US = ["n", "stream"]
"""Parameters that this API honours itself, whatever the engine."""
COUNTED_BY_US = ["context_policy"]
"""Those that are honoured where prompts are made here, and not at an upstream."""


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
        terms = terms_of(request, body.n or 1, body.context_policy, body.stream)
        if body.stream:
            return await stream(chat, body, terms, request.receive)
        messages = [message.message() for message in body.messages]
        completion = await unless_disconnected(request.receive, chat.complete(messages, sampling(body), terms))
        answer = whole(completion, chat.served, bool(body.logprobs))
        return Response(answer.model_dump_json(), media_type="application/json", headers=dropped(completion.prompt))

    @routes.get("/models")
    async def models(request: Request) -> ModelList:
        """The served model, with what its engine honours."""
        return ModelList(data=[describe(chat_of(request), created)])

    @routes.get("/models/{model:path}")
    async def model(model: str, request: Request) -> Model:
        """One model by its id."""
        chat = chat_of(request)
        if model != chat.served:
            raise unknown_model(chat)
        return describe(chat, created)

    return routes


def chat_of(request: Request) -> Chat:
    """The `Chat` of the worker that serves the request."""
    chat: Chat = request.app.state.chat
    return chat


def sampling(body: ChatCompletionRequest) -> Sampling:
    """How the request wants its tokens chosen; what changes nothing (a penalty of zero) is not asked for."""
    return Sampling(
        max_tokens=body.token_limit(),
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=EVERY_TOKEN if body.top_k in (0, -1) else body.top_k,
        seed=body.seed,
        repetition_penalty=body.repetition_penalty,
        frequency_penalty=body.frequency_penalty or None,
        presence_penalty=body.presence_penalty or None,
        stop=body.stop_strings(),
        logprobs=body.logprobs or None,
        top_logprobs=body.top_logprobs or None,
        logit_bias={int(token): float(bias) for token, bias in (body.logit_bias or {}).items()} or None,
        response_format=body.response_format.schema_text() if body.response_format else None,
    )


def whole(completion: Completion, model: str, logprobs: bool) -> ChatCompletion:
    """All answers in OpenAI's shape."""
    finishes = [answer.finish for answer in completion.answers]
    return ChatCompletion(
        id=new_id(),
        created=int(time.time()),
        model=model,
        choices=[choice(index, answer, logprobs) for index, answer in enumerate(completion.answers)],
        usage=usage(combined(finishes), completion.prompt),
    )


def choice(index: int, answer: Answer, logprobs: bool) -> Choice:
    """One answer in OpenAI's shape."""
    return Choice(
        index=index,
        message=CompletionMessage(content=answer.text),
        logprobs=ChoiceLogprobs(content=told(answer.logprobs)) if logprobs else None,
        finish_reason=answer.finish.reason,
    )


def told(logprobs: Sequence[engine.TokenLogprob]) -> list[TokenLogprob]:
    """Log-probabilities in OpenAI's shape."""
    return [
        TokenLogprob(
            **likely(logprob.token, logprob.logprob).model_dump(),
            top_logprobs=[likely(*pair) for pair in logprob.likeliest],
        )
        for logprob in logprobs
    ]


def likely(token: bytes | None, logprob: float) -> TopLogprob:
    """One token in OpenAI's shape."""
    text = (token or b"\xff").decode("utf-8", "replace")
    return TopLogprob(token=text, logprob=logprob, bytes=None if token is None else list(token))


async def stream(chat: Chat, body: ChatCompletionRequest, terms: Terms, receive: Receive) -> Streamed:
    """Streamed answers, each event a chunk in OpenAI's shape."""
    messages = [message.message() for message in body.messages]
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    chunks = Chunks(new_id(), int(time.time()), chat.served, include_usage, bool(body.logprobs))

    def frames(prompt: Prompt) -> CompletionFrames:
        return CompletionFrames(chunks, prompt, terms.answers, include_usage)

    return await streamed(chat.answer(messages, sampling(body), terms), terms.deadline, receive, frames)


class CompletionFrames:
    """Frames of all answers, the last one terminal: `[DONE]` or an error.

    Args:
        chunks: of this completion.
        prompt: what was answered.
        answers: how many there are.
        include_usage: whether a usage chunk comes last.
    """

    def __init__(self, chunks: Chunks, prompt: Prompt, answers: int, include_usage: bool) -> None:
        self._chunks = chunks
        self._prompt = prompt
        self._answers = answers
        self._include_usage = include_usage
        self._finishes: list[Finish] = []
        self.over = False

    def head(self) -> str:
        """The role of each answer."""
        return "".join(self._chunks.role(index) for index in range(self._answers))

    def take(self, event: Event) -> str:
        """The chunk of an event; after the last one the end."""
        if isinstance(event, Delta):
            if event.text or event.logprobs:
                return self._chunks.text(event, told(event.logprobs))
            return "" if event.tokens else KEEP_ALIVE
        if isinstance(event, Failure):
            self.over = True
            return error_frame(event.error())
        self._finishes.append(event)
        self.over = len(self._finishes) == self._answers
        return self._chunks.last(event, told(event.logprobs)) + (self._end() if self.over else "")

    def _end(self) -> str:
        counted = usage(combined(self._finishes), self._prompt) if self._include_usage else None
        return (self._chunks.usage(counted) if counted else "") + DONE


def refuse_unknown_model(model: str | None, chat: Chat) -> None:
    """Refuses a request for another model than the one that is served; a request may name none."""
    if model not in (None, "", chat.served):
        raise unknown_model(chat)


def unknown_model(chat: Chat) -> ParleyError:
    """The error for a request that names another model."""
    return ParleyError(ErrorCode.MODEL_NOT_FOUND, f"This model is not served here; {chat.served} is.", "model")


def describe(chat: Chat, created: int) -> Model:
    """The served model in OpenAI's shape, with our additions."""
    info = chat.info
    ours = SERVED_BY_US if isinstance(chat.builder, Passage) else [*SERVED_BY_US, *COUNTED_BY_US]
    return Model(
        id=chat.served,
        created=created,
        engine=info.engine,
        engine_reason=info.reason,
        device=info.device,
        dtype=info.dtype,
        context_length=info.context_length,
        parameters=[*info.parameters, *ours],
        streams=info.streams,
    )


def new_id() -> str:
    """An id for one completion."""
    return f"chatcmpl-{uuid.uuid4().hex}"
