"""Watch: decides from reports and times alone whether an engine process is hung."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """How long things may take, in seconds."""

    load: float = 600.0
    """From start to ready."""
    silence: float = 5.0
    """Without any sign of life from a loaded process: it is stopped."""
    step: float = 120.0
    """One step of the model. A library that holds the interpreter keeps all beats back for as long."""


class Watch:
    """Follows one process. Times are seconds of one monotonic clock, given by the caller."""

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self._started = now
        self._heard: float | None = None
        self._alive = now
        self._steps = -1
        self._step_began: float | None = None

    def loaded(self, now: float) -> None:
        """The model is ready; from now on the process must beat."""
        self._heard = self._alive = now

    def works(self, now: float) -> None:
        """The process has used processor time: it is not stopped, though its beats may be held back by a long step."""
        self._alive = now

    def beat(self, steps: int, busy: bool, now: float) -> None:
        """The process is alive; it has finished `steps` steps and is `busy` or idle."""
        self._heard = self._alive = now
        if not busy:
            self._step_began = None
        elif steps != self._steps or self._step_began is None:
            self._step_began = now
        self._steps = steps

    def fault(self, now: float) -> str:
        """Why the process counts as hung, or an empty string."""
        if self._heard is None:
            late = now - self._started > self._limits.load
            return f"the model did not load in {self._limits.load:g} s" if late else ""
        if now - self._alive > self._limits.silence:
            return f"the engine has not answered for {self._limits.silence:g} s"
        began = self._heard if self._step_began is None else self._step_began
        if now - began > self._limits.step:
            return f"a step of the engine took more than {self._limits.step:g} s"
        return ""
