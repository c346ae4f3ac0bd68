"""What this machine or container has: memory and cores, cgroup limits read."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""This process's cgroup, as a container sees it."""

_MEMORY = ("memory.max", "memory/memory.limit_in_bytes")
_CPU_TIME = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
"""The files of versions 2 and 1."""


def memory_limit() -> int:
    """Bytes of memory that this process may use: the smallest of the machine's and its cgroup's."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [int(text) for name in _MEMORY if (text := _read(name)).isdigit()]
    return min([machine, *limits])


CACHED_SHARE = 0.25
"""Of a full batch of longest conversations: what the KV cache has room for. Few are that long at once; when they are,
what was kept of earlier ones goes first, and then some wait."""


def cache_blocks(block_bytes: int, blocks_of_one: int, batch: int, memory: int, asked: int | None) -> int:
    """Blocks of a KV cache: for `CACHED_SHARE` of a full batch, or for one longest conversation, if memory allows.

    Args:
        block_bytes: the size of one block.
        blocks_of_one: how many the longest conversation takes.
        batch: most conversations decoded together.
        memory: the most that the cache may take, in bytes.
        asked: what it is to take, if the operator said so.
    """
    if asked is not None:
        return asked // block_bytes
    wanted = max(blocks_of_one, math.ceil(batch * blocks_of_one * CACHED_SHARE))
    return min(wanted, memory // block_bytes)


def core_quota() -> int | None:
    """Whole cores whose time the cgroup's CPU quota gives, at least one; None where it gives all that there are.

    The libraries count the cores that they may run on and do not read the quota: their threads would use up a period's
    time in its first part, and then all wait for the next one.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = [" ".join(map(_read, names)).split() for names in _CPU_TIME]
    shares = [int(time[0]) // int(time[1]) for time in told if len(time) == 2 and time[0].isdigit()]
    quota = max(1, min(shares, default=cores))
    return quota if quota < cores else None


def _read(name: str) -> str:
    file = CGROUP / name
    return file.read_text("ascii").strip() if file.is_file() else ""
