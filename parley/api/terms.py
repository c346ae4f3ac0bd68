"""The terms of a request, from what its headers, its key and its body say; and what is told of them in the answer."""

from dataclasses import dataclass

from starlette.requests import Request

from parley.api.deadline import deadline_of
from parley.api.keys import Key, key_of
from parley.contract.errors import ErrorCode, ParleyError
from parley.contract.openai import CONTEXT_POLICIES, ContextPolicy
from parley.prompt import Prompt

POLICY_HEADER = "x-context-policy"


@dataclass(frozen=True)
class Terms:
    """On what terms a request is answered, beside its messages and its sampling."""

    answers: int = 1
    policy: ContextPolicy | None = None
    deadline: float | None = None
    """The moment, in the event loop's time, at which its client gives up."""
    key: Key | None = None


PLAIN = Terms()
"""One answer, for whoever waits however long."""


def terms_of(request: Request, answers: int = 1, policy: ContextPolicy | None = None, streams: bool = False) -> Terms:
    """On what terms a request is answered; what the body says comes before the header.

    Raises:
        ParleyError: `INVALID_VALUE` for a header that cannot be read, which is named as the parameter.
    """
    deadline = deadline_of(request.headers, streams)
    return Terms(answers, policy or header_policy(request), deadline, key_of(request))


def header_policy(request: Request) -> ContextPolicy | None:
    """The context policy that the header asks for."""
    given = request.headers.get(POLICY_HEADER)
    for policy in CONTEXT_POLICIES:
        if given == policy:
            return policy
    if given is not None:
        message = f"{POLICY_HEADER}: one of {', '.join(CONTEXT_POLICIES)} is expected"
        raise ParleyError(ErrorCode.INVALID_VALUE, message, POLICY_HEADER)
    return None


def dropped(prompt: Prompt) -> dict[str, str]:
    """Headers that tell what the context policy left out; none if it left nothing out."""
    if not prompt.dropped_tokens:
        return {}
    return {
        "x-context-dropped-messages": str(prompt.dropped_messages),
        "x-context-dropped-tokens": str(prompt.dropped_tokens),
    }
