"""What this machine or container has: memory and cores, cgroup limits read."""

import math
import os
from pathlib import Path

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_limit() -> int:
    """Bytes of memory that this process may use: the smallest of the machine's and its cgroup's."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [int(text) for path in _CGROUP_LIMITS if (text := _read(path)).isdigit()]
    return min([machine, *limits])


CACHED_SHARE = 0.25
"""Of a full batch of longest conversations: what the KV cache has room for. Few are that long at once; when they are,
what was kept of earlier ones goes first, and then some wait."""


def cache_blocks(block_bytes: int, blocks_of_one: int, batch: int, memory: int, asked: int | None) -> int:
    """Blocks of a KV cache: for `CACHED_SHARE` of a full batch, and at least one longest conversation, within memory.

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


def core_limit() -> int:
    """Whole cores that this process may use: the smaller of its affinity and its cgroup's CPU quota, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    return max(1, min(cores, int(quota) // int(period))) if quota.isdigit() and period.isdigit() else cores


def _read(path: str) -> str:
    file = Path(path)
    return file.read_text("ascii").strip() if file.is_file() else ""
