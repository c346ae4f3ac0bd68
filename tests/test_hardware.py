"""What a container may use: memory and processor time, as its cgroup says."""

import os
from pathlib import Path

import pytest
import torch

from parley import serving
from parley.engine import hardware
from parley.engine.runners.hardware import cache_bytes
from parley.settings import Settings


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the container's cgroup, on a machine of eight cores."""
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    return tmp_path


def put(cgroup: Path, files: dict[str, str]) -> None:
    """Writes what the kernel would tell."""
    for name, text in files.items():
        path = cgroup / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + "\n", "ascii")


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_the_cache_on_a_cpu_keeps_to_the_containers_memory(cgroup: Path, name: str) -> None:
    """Fails when the transformers engine's cache takes a share of the node, and the container is killed for it."""
    put(cgroup, {name: str(2**28)})
    assert cache_bytes(torch.device("cpu")) == int(2**28 * 0.15)


def test_memory_without_a_limit_is_the_machines(cgroup: Path) -> None:
    """Fails when the cgroup's word for "no limit" is read as a number, or a file that is not there as zero."""
    machine = hardware.memory_limit()
    put(cgroup, {"memory.max": "max"})
    assert hardware.memory_limit() == machine > 2**28


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "800000 100000"}, None),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_threads_follow_the_containers_cpu_quota(cgroup: Path, files: dict[str, str], cores: int | None) -> None:
    """Fails when an engine starts a thread for each core of a node of which its container has little time, or when the
    operator's own number does not count."""
    put(cgroup, files)
    assert hardware.core_quota() == cores
    echo = {"PARLEY_ENGINE": "echo"}
    assert serving.launch_for(Settings.from_env(echo))[0].placement.threads == cores
    asked = Settings.from_env({**echo, "PARLEY_THREADS": "5"})
    assert serving.launch_for(asked)[0].placement.threads == 5
