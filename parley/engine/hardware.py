"""What this machine or container has: memory and cores, cgroup limits read."""

import os
from pathlib import Path

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_limit() -> int:
    """Bytes of memory that this process may use: the smallest of the machine's and its cgroup's."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [int(text) for path in _CGROUP_LIMITS if (text := _read(path)).isdigit()]
    return min([machine, *limits])


def core_limit() -> int:
    """Whole cores that this process may use: the smaller of its affinity and its cgroup's CPU quota, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    return max(1, min(cores, int(quota) // int(period))) if quota.isdigit() and period.isdigit() else cores


def _read(path: str) -> str:
    file = Path(path)
    return file.read_text("ascii").strip() if file.is_file() else ""
