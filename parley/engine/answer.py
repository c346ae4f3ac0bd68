"""One answer while it is made, in the engine process: from a runner's steps to the events that the API sees."""

from collections import deque
from collections.abc import Sequence

from parley.contract.errors import ErrorCode
from parley.engine.engine import Delta, Event, Failure, Finish, TokenLogprob
from parley.engine.runner import Detokenizer, FinishReason, Job, Step
from parley.engine.text import StopMatcher


class Answer:
    """Counts tokens, turns them into text and looks for stop strings."""

    def __init__(self, job: Job, detokenizer: Detokenizer) -> None:
        self._job = job
        self._detokenizer = detokenizer
        self._stops = StopMatcher(job.sampling.stop)
        self._tokens = 0
        self._logprobs = LogprobQueue(detokenizer) if job.sampling.logprobs else None

    def advance(self, step: Step) -> Event:
        """The event of one step; terminal when the step was the last one or a stop string was completed."""
        if step.error is not None:
            return Failure(self._job.id, ErrorCode.ENGINE_ERROR, step.error)
        self._tokens += len(step.tokens)
        text = self._stops.push(self._text(step))
        if step.finish is not None:
            text += self._stops.push(self._detokenizer.flush()) + self._stops.flush()
            return self._finished(text, "stop" if self._stops.matched else step.finish, step.cached)
        if self._stops.matched:
            return self._finished(text, "stop", step.cached)
        return Delta(self._job.id, text, len(step.tokens), self._released(text))

    def _text(self, step: Step) -> str:
        if self._logprobs is None:
            return self._detokenizer.push(step.tokens)
        likeliest = step.likeliest or [[]] * len(step.tokens)
        return "".join(self._logprobs.push(*told) for told in zip(step.tokens, step.logprobs, likeliest, strict=True))

    def _released(self, text: str, ended: bool = False) -> tuple[TokenLogprob, ...]:
        return tuple(self._logprobs.release(len(text), ended)) if self._logprobs is not None else ()

    def _finished(self, text: str, reason: FinishReason, cached: int | None) -> Finish:
        logprobs = self._released(text, ended=not self._stops.matched)
        return Finish(self._job.id, text, reason, len(self._job.prompt), self._tokens, cached, logprobs)


class LogprobQueue:
    """Log-probabilities that wait until the text of their tokens is out, so that no stop string leaks through them."""

    def __init__(self, detokenizer: Detokenizer) -> None:
        self._detokenizer = detokenizer
        self._waiting: deque[tuple[int, TokenLogprob]] = deque()
        self._pushed = 0
        self._sent = 0

    def push(self, token: int, logprob: float, likeliest: Sequence[tuple[int, float]]) -> str:
        """Takes one token in; returns the text that is final after it."""
        is_first = not (self._waiting or self._sent)
        text = self._detokenizer.push([token])
        self._pushed += len(text)
        own = self._detokenizer.token_bytes(token)
        others = [(self._detokenizer.token_bytes(other), likely) for other, likely in likeliest]
        if is_first and own == b" " + text.encode():  # decoders take the space before the first word away
            own, others = text.encode(), [(other and other.removeprefix(b" "), likely) for other, likely in others]
        self._waiting.append((self._pushed, TokenLogprob(own, logprob, others)))
        return text

    def release(self, characters: int, ended: bool) -> list[TokenLogprob]:
        """Tokens whose text ends within what was sent, these characters included; all of them once it has `ended`."""
        self._sent += characters
        out = []
        while self._waiting and (ended or self._waiting[0][0] <= self._sent):
            out.append(self._waiting.popleft()[1])
        return out
