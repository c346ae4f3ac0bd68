"""The field: who takes part, and how each is started with the same model.

Every program gets its own defaults, room for 32 users, and nothing else that is not said here.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from pydantic import JsonValue

from bench import exports
from bench.contestant import Contestant, NotStarted
from bench.in_process import InProcess
from bench.load import Target
from bench.server import Server

PORT = 3970
URL = f"http://127.0.0.1:{PORT}"
VLLM = Path(".venv-vllm")
TCMALLOC = VLLM / "tcmalloc/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"
"""vLLM's documentation asks for it and for Intel's OpenMP; without them it is slower."""
MOST_USERS = 32
CACHE_GB = 2
CONTEXT_PER_USER = 2048
"""llama.cpp divides its context among its users."""
TRANSFORMERS_CACHE_SHARE = 0.1
"""Of the memory; its own default takes nine tenths of it."""

Entry = Callable[[Path, Path], Contestant]
"""Makes a contestant from a model's folder and a log file; raises `NotStarted` when something is missing."""

_BENTO = [sys.executable, "-m", "bentoml", "serve", "service:Parley", "--host", "127.0.0.1", "--port", str(PORT)]

GREEDY: dict[str, JsonValue] = {"temperature": 0}


def _parley(name: str, engine: str, dtype: str | None) -> Entry:
    def make(folder: Path, log: Path) -> Contestant:
        if engine == "openvino":
            exports.openvino(folder, dtype or "float32")
        environment = {
            "PARLEY_MODEL": str(folder),
            "PARLEY_ENGINE": engine,
            "PARLEY_SYSTEM_PROMPT": "",
            "PARLEY_MAX_BATCH": str(MOST_USERS),
            "BENTOML_DO_NOT_TRACK": "True",
            **({"PARLEY_DTYPE": dtype} if dtype else {}),
        }
        return Server(name, _BENTO, Target(URL, sampling=_sampling(folder)), log, environment, "parley.engine.loop")

    return make


def _raw(name: str, dtype: str) -> Entry:
    return lambda folder, _log: InProcess(name, folder, dtype)


def _plain(folder: Path, log: Path) -> Contestant:
    command = [sys.executable, "-m", "bench.peers.plain", str(folder), str(PORT)]
    return Server("plain FastAPI", command, Target(URL, "plain", _sampling(folder)), log)


def _transformers(folder: Path, log: Path) -> Contestant:
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder), "--continuous-batching"]
    options = ["--device", "cpu", "--cb-max-memory-percent", str(TRANSFORMERS_CACHE_SHARE)]
    where = ["--host", "127.0.0.1", "--port", str(PORT)]
    target = Target(URL, str(folder), _sampling(folder), says_done=False)
    return Server("transformers serve", [*command, *options, *where], target, log)


def _llama_cpp(folder: Path, log: Path) -> Contestant:
    model = exports.gguf(folder)
    context = MOST_USERS * _context(folder)
    options = ["--model", str(model), "--port", str(PORT), "--parallel", str(MOST_USERS), "--ctx-size", str(context)]
    # On x86 it rearranges Q8_0 for AMX only, and crashes then (its issue 20824).
    options += ["--no-repack"]
    target = Target(URL, "llama", _sampling(folder))
    return Server("llama.cpp Q8_0", [str(exports.LLAMA / "bin" / "llama-server"), *options], target, log)


def _vllm(folder: Path, log: Path) -> Contestant:
    python = VLLM / "bin" / "python"
    if not python.exists():
        raise NotStarted(f"{VLLM} is not there; `make bench-peers` sets it up")
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(PORT)]
    options = ["--dtype", "bfloat16", "--max-num-seqs", str(MOST_USERS), "--max-model-len", str(_context(folder))]
    preloaded = [str(path.resolve()) for path in (VLLM / "lib" / "libiomp5.so", TCMALLOC) if path.exists()]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": str(CACHE_GB),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "LD_PRELOAD": ":".join(preloaded),
    }
    target = Target(URL, str(folder), _sampling(folder))
    return Server("vLLM bf16", [*command, *options], target, log, environment, "VLLM::")


def _context(folder: Path) -> int:
    """Context of one user: what the workloads need, and not more than the model has."""
    return min(CONTEXT_PER_USER, int(json.loads((folder / "config.json").read_text())["max_position_embeddings"]))


def _sampling(folder: Path) -> dict[str, JsonValue]:
    """Greedy for decoder-only models; an encoder-decoder follows its own generation config."""
    return {} if folder.name.startswith("blenderbot") else dict(GREEDY)


DECODERS: dict[str, Entry] = {
    "raw": _raw("raw OpenVINO fp32", "float32"),
    "raw-bf16": _raw("raw OpenVINO bf16", "bfloat16"),
    "raw-int8": _raw("raw OpenVINO int8", "int8"),
    "parley": _parley("Parley OpenVINO fp32", "openvino", "float32"),
    "parley-bf16": _parley("Parley OpenVINO bf16", "openvino", "bfloat16"),
    "parley-int8": _parley("Parley OpenVINO int8", "openvino", "int8"),
    "parley-torch": _parley("Parley transformers", "transformers", None),
    "plain": _plain,
    "transformers": _transformers,
    "llama.cpp": _llama_cpp,
    "vllm": _vllm,
}
ENCODER_DECODERS: dict[str, Entry] = {
    "parley": _parley("Parley seq2seq fp32", "seq2seq", "float32"),
    "parley-int8": _parley("Parley seq2seq int8", "seq2seq", "int8"),
    "plain": _plain,
}


def entries(shape: str) -> dict[str, Entry]:
    """Who can take part with a model of this shape."""
    return ENCODER_DECODERS if shape.startswith("blenderbot") else DECODERS


def echo(log: Path) -> Server:
    """Parley without a model."""
    return Server("Parley echo", _BENTO, Target(URL), log, {"PARLEY_ENGINE": "echo"}, "parley.engine.loop")


def typist(log: Path) -> Server:
    """Plain FastAPI that streams ready words."""
    command = [sys.executable, "-m", "bench.peers.typist", str(PORT)]
    return Server("plain FastAPI stream", command, Target(URL, "typist"), log)
