"""One answer while it is made, in the engine process: from a runner's steps to the events that the API sees."""

from parley.contract.errors import ErrorCode
from parley.engine.engine import Delta, Event, Failure, Finish
from parley.engine.runner import Detokenizer, FinishReason, Job, Step
from parley.engine.text import StopMatcher


class Answer:
    """Counts tokens, turns them into text and looks for stop strings."""

    def __init__(self, job: Job, detokenizer: Detokenizer) -> None:
        self._job = job
        self._detokenizer = detokenizer
        self._stops = StopMatcher(job.sampling.stop)
        self._tokens = 0

    def advance(self, step: Step) -> Event:
        """The event of one step; terminal when the step was the last one or a stop string was completed."""
        if step.error is not None:
            return Failure(self._job.id, ErrorCode.ENGINE_ERROR, step.error)
        self._tokens += len(step.tokens)
        text = self._stops.push(self._detokenizer.push(step.tokens))
        if step.finish is not None:
            text += self._stops.push(self._detokenizer.flush()) + self._stops.flush()
            return self._finished(text, "stop" if self._stops.matched else step.finish, step.cached)
        if self._stops.matched:
            return self._finished(text, "stop", step.cached)
        return Delta(self._job.id, text, len(step.tokens))

    def _finished(self, text: str, reason: FinishReason, cached: int) -> Finish:
        return Finish(self._job.id, text, reason, len(self._job.prompt), self._tokens, cached)
