"""The machine and the versions that a result belongs to."""

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil  # type: ignore[import-untyped]

PACKAGES = ("parley", "openvino-genai", "torch", "transformers", "bentoml", "fastapi", "uvicorn")


def describe() -> dict[str, object]:
    """The processor, memory, system load at the start, and versions."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load_average": round(psutil.getloadavg()[0], 2),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        told = cpuinfo.read_text()
        name = re.search(r"^model name\s*: (.*)$", told, re.MULTILINE)
        wide = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if f" {flag} " in told]
        return f"{name[1] if name else 'unknown'} ({' '.join(wide)})"
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
