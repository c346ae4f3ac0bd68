"""The plan: which workloads each model gets. Lengths are in words, each a token of the models that are built here."""

from bench.workload import Workload

SINGLE = ((16,), (64,), (196,), (400,))
CHAT = ((64, 32, 32, 32),)
HISTORY = ((1500, 16, 16),)
SHORT = ((16,), (48,), (96,))
"""Blenderbot reads at most 128 tokens; the embedded model 1,024, and to it each of these words is three or four."""

WINDOWS = {"S": 10.0, "M": 20.0, "L": 40.0, "pocket": 10.0, "blenderbot": 40.0, "blenderbot-greedy": 30.0}
"""Seconds of a trial: long enough for several answers of the slowest contestant."""

RATES = {"S": 10.0, "M": 0.5, "L": 0.1}
"""Conversations a second in the open loop: below what most contestants can do, so that waits say something."""


def workloads(model: str, window: float | None) -> list[Workload]:
    """The workloads of a model; `window` replaces its own length of a trial."""
    seconds = window or WINDOWS[model]
    if model == "blenderbot":
        return [Workload(f"{users} users", users, seconds, SHORT, 32) for users in (1, 16)]
    if model == "blenderbot-greedy":
        return [Workload(f"{users} users", users, seconds, SHORT, 32) for users in (1, 32)]
    if model == "pocket":
        return [Workload(f"{users} users", users, seconds, SHORT, 128) for users in (1, 8, 32)]
    return [
        *(Workload(f"{users} users", users, seconds, SINGLE, 128) for users in (1, 8, 32)),
        Workload("open loop", 32, seconds, SINGLE, 128, rate=RATES[model]),
        Workload("chat", 8, seconds, CHAT, 64),
        Workload("history", 1, seconds, HISTORY, 32),
    ]
