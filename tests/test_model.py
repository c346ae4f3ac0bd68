"""Model folders: found, downloaded, converted, and refused when they are hostile or broken."""

import json
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from parley.engine.launch import choose
from parley.engine.model import POCKET, ModelError, resolve
from tests.models_decoder import build_llama, build_phi3, build_qwen2

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return build_llama(tmp_path / "model")


def refusal(model: Path | str, cache: Path) -> str:
    """The one line that a model is refused with."""
    with pytest.raises(ModelError) as error:
        resolve(str(model), cache)
    assert "\n" not in str(error.value)
    return str(error.value)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def to_pickle(folder: Path, shards: int = 1, zipped: bool = True) -> dict[str, torch.Tensor]:
    """Replaces a folder's safetensors by pickled weights, as older models have them; returns the weights."""
    state = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    for number in range(shards):
        name = "pytorch_model.bin" if shards == 1 else f"pytorch_model-{number + 1:05}-of-{shards:05}.bin"
        part = {key: state[key] for key in names[number::shards]}
        torch.save(part, folder / name, _use_new_zipfile_serialization=zipped)
    return state


class Bomb:
    """Unpickling it calls `touch`."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        """What unpickling calls."""
        return os.system, (f"touch {self._canary}",)


def test_a_local_folder_becomes_a_model(model: Path, tmp_path: Path) -> None:
    """Fails when a plain, good folder is refused or misread."""
    folder = resolve(str(model), tmp_path / "cache")
    assert (folder.name, folder.path, folder.model_type, folder.encoder_decoder) == ("model", model, "llama", False)
    assert not (tmp_path / "cache").exists()


def test_pocket_is_the_embedded_folder(model: Path, tmp_path: Path) -> None:
    """Fails when the default model is looked for in the working directory."""
    folder = resolve("pocket", tmp_path, pocket=model)
    assert (folder.name, folder.path) == ("pocket", model)


def test_no_such_folder_is_one_line(tmp_path: Path) -> None:
    """Fails when a mistyped path is sent to the hub."""
    assert "no such folder" in refusal(tmp_path / "nowhere", tmp_path)


def test_resolving_imports_no_model_library() -> None:
    """Fails when the API process pays seconds and gigabytes for torch."""
    done = run_python("import parley.engine.model, sys; assert not {'torch', 'transformers'} & set(sys.modules)")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "settings",
    [
        {"HF_HUB_OFFLINE": "1"},
        {"HF_ENDPOINT": "http://127.0.0.1:9"},
        {"HF_ENDPOINT": "http://hub.invalid", "http_proxy": "http://127.0.0.1:9"},
        {"HF_ENDPOINT": "http://hub.invalid", "ALL_PROXY": "socks5://127.0.0.1:9"},
    ],
)
def test_a_failed_download_names_model_cause_and_way_out(tmp_path: Path, settings: dict[str, str]) -> None:
    """Fails when a machine without the hub shows a traceback."""
    code = f"""
from pathlib import Path
from parley.engine.launch import choose
from parley.engine.model import POCKET, ModelError, resolve
try:
    resolve("facebook/blenderbot-400M-distill", Path({str(tmp_path)!r}))
except ModelError as error:
    print(error)
"""
    lines = run_python(code, HF_HOME=str(tmp_path), **settings).stdout.splitlines()
    assert len(lines) == 1
    assert "facebook/blenderbot-400M-distill" in lines[0]
    assert "local folder or 'pocket'" in lines[0]


class Hub(BaseHTTPRequestHandler):
    """The few routes of the hub that a download uses, over one folder; counts what was asked for."""

    def __init__(self, folder: Path, asked: list[str], *arguments: object) -> None:
        self._folder = folder
        self._asked = asked
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """The model's description, its file tree, or a file; `broken` breaks off in it, `gated` is refused."""
        if "gated" in self.path:
            return self._refuse()
        if "/resolve/" in self.path:
            name = self.path.rsplit("/", 1)[1]
            self._asked.append(name)
            if "broken" in self.path and self.command == "GET" and name == "model.safetensors":
                return self._break_off()
            return self._answer((self._folder / name).read_bytes(), "application/octet-stream")
        files = sorted(path for path in self._folder.iterdir() if path.is_file())
        if "/tree/" in self.path:
            tree = [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": p.name} for p in files]
            return self._answer(json.dumps(tree).encode(), "application/json")
        description = {"id": "owner/name", "sha": "a" * 40, "siblings": [{"rfilename": p.name} for p in files]}
        return self._answer(json.dumps(description).encode(), "application/json")

    do_HEAD = do_GET

    def _refuse(self) -> None:
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("X-Error-Message", "Ask for access to it.")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _break_off(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.send_header("ETag", '"half"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.end_headers()
        self.wfile.write(b"half of it")
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hash(body) & 0xFFFFFFFF:08x}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Silent."""


@pytest.fixture
def hub(model: Path) -> Iterator[tuple[str, list[str]]]:
    """A hub on this machine that has `model` as `owner/name`; its address and the files asked of it."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, model, asked))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("pickled", [False, True])
def test_a_hub_id_is_downloaded(hub: tuple[str, list[str]], model: Path, tmp_path: Path, pickled: bool) -> None:
    """Fails when a download lacks a file, or fetches pickled weights beside safetensors."""
    if pickled:
        to_pickle(model)
    else:
        (model / "pytorch_model.bin").write_bytes(b"never asked for")
    address, asked = hub
    code = f"""
from pathlib import Path
from parley.engine.model import resolve
folder = resolve("owner/name@main", Path({str(tmp_path / "cache")!r}))
print(folder.name, (folder.path / "model.safetensors").stat().st_size)
"""
    done = run_python(code, HF_ENDPOINT=address, HF_HOME=str(tmp_path / "hub"), HF_HUB_DISABLE_XET="1")
    assert done.stdout.split()[:1] == ["owner/name"], done.stderr
    assert ("pytorch_model.bin" in asked) is pickled


@pytest.mark.parametrize(("name", "words"), [("broken", ""), ("gated", "Ask for access to it.")])
def test_a_download_that_fails_under_way_is_one_line(
    hub: tuple[str, list[str]], tmp_path: Path, name: str, words: str
) -> None:
    """Fails when a line that breaks is a traceback, or a user is not told that a licence has to be accepted."""
    code = f"""
from pathlib import Path
from parley.engine.launch import choose
from parley.engine.model import POCKET, ModelError, resolve
try:
    resolve("owner/{name}", Path({str(tmp_path / "cache")!r}))
except ModelError as error:
    print(error)
"""
    done = run_python(code, HF_ENDPOINT=hub[0], HF_HOME=str(tmp_path / "hub"), HF_HUB_DISABLE_XET="1")
    (line,) = done.stdout.splitlines()
    assert f"'owner/{name}': cannot be downloaded" in line
    assert words in line


def test_what_a_killed_conversion_left_is_cleared_away(model: Path, tmp_path: Path) -> None:
    """Fails when every interrupted conversion costs the cache gigabytes for ever."""
    to_pickle(model)
    target = resolve(str(model), tmp_path / "cache").path
    target.rename(tmp_path / "cache" / f".{target.name}-killed")
    assert resolve(str(model), tmp_path / "cache").path == target
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted((target.name, "convert.lock"))


def test_a_converter_that_was_killed_is_told_so(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when a machine without enough memory is told of its network."""
    to_pickle(model)
    killed = subprocess.CompletedProcess([], -9, stderr="this system lets no process leave the network\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: killed)
    told = refusal(model, tmp_path / "cache")
    assert "signal 9" in told
    assert "network" not in told


def test_r12_a_type_of_model_that_is_no_name_is_no_traceback(model: Path, tmp_path: Path) -> None:
    """R12. Fails when a config of odd shape is a traceback."""
    edit(model / "config.json", model_type=["phi3"])
    resolve(str(model), tmp_path / "cache")


HOSTILE_JSON = {
    "auto_map": ("config.json", {"auto_map": {"AutoModelForCausalLM": "modeling.Evil"}}),
    "tokenizer auto_map": ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["tokenization.Evil", None]}}),
    "_attn_implementation_internal": ("config.json", {"_attn_implementation_internal": "evil/kernel"}),
    "kernel": ("config.json", {"attn_implementation": "evil/kernel"}),
    "nested": ("config.json", {"text_config": {"layers": [{"trust_remote_code": True}]}}),
    "generation": ("generation_config.json", {"nested": {"trust_remote_code": True}}),
}


@pytest.mark.parametrize("case", HOSTILE_JSON)
def test_r12_a_config_that_asks_for_code_is_refused(model: Path, tmp_path: Path, case: str) -> None:
    """R12. Fails when a model folder can choose what this machine imports."""
    name, changes = HOSTILE_JSON[case]
    edit(model / name, **changes)
    assert "never run" in refusal(model, tmp_path)


def test_code_beside_a_model_that_needs_none_is_left_alone(tmp_path: Path) -> None:
    """Fails when Phi-3 is refused, whose makers name code of their own for what transformers has a class for."""
    folder = build_phi3(tmp_path / "phi3")
    assert resolve(str(folder), tmp_path / "cache").path == folder
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization.Evil", None]})
    assert "never run" in refusal(folder, tmp_path / "cache")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b'"text"', b"[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_r12_a_broken_config_is_refused(model: Path, tmp_path: Path, name: str, content: bytes) -> None:
    """R12. Fails when malformed JSON ends in a traceback."""
    (model / name).write_bytes(content)
    assert name in refusal(model, tmp_path)


def test_r12_a_link_out_of_the_folder_is_refused(model: Path, tmp_path: Path) -> None:
    """R12. Fails when a model can make us read, or serve, any file of the machine."""
    (model / "extra").mkdir()
    (model / "extra" / "data.txt").symlink_to("/etc/hostname")
    assert "link out of" in refusal(model, tmp_path)


def test_links_inside_the_hub_s_cache_are_fine(model: Path, tmp_path: Path) -> None:
    """Fails when nothing that the hub downloaded can be used: its snapshots are links to blobs."""
    snapshot, blobs = tmp_path / "models--o--n" / "snapshots" / "abc", tmp_path / "models--o--n" / "blobs"
    snapshot.mkdir(parents=True)
    model.rename(blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert resolve(str(snapshot), tmp_path).path == snapshot
    (snapshot / "more.txt").symlink_to("../../../other")
    assert "link out of" in refusal(snapshot, tmp_path)


def test_r12_a_pipe_in_the_folder_is_refused(model: Path, tmp_path: Path) -> None:
    """R12. Fails when opening a file of the folder can block for ever."""
    os.mkfifo(model / "tokenizer.model")
    assert "regular file" in refusal(model, tmp_path)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"])
def test_a_missing_part_is_named(model: Path, tmp_path: Path, missing: str) -> None:
    """Fails when an incomplete folder is found out only by a traceback of the loader."""
    (model / missing).unlink()
    word = {"tokenizer.json": "tokenizer", "chat_template.jinja": "chat template"}.get(missing, missing)
    assert word in refusal(model, tmp_path)


def test_an_export_stands_for_the_weights(tmp_path: Path) -> None:
    """Fails when a folder that holds all that OpenVINO reads is refused, or one where it finds nothing is let in."""
    folder = shutil.copytree(POCKET, tmp_path / "pocket")
    (folder / "model.safetensors").unlink()
    found = resolve(str(folder), tmp_path)
    assert choose("auto", found, None).engine == "openvino"
    with pytest.raises(ModelError, match="no weights, as transformers needs: set PARLEY_ENGINE=openvino"):
        choose("transformers", found, None)
    (folder / "openvino").rename(folder / "openvino-int8")
    with pytest.raises(ModelError, match="no weights, as transformers needs: set PARLEY_DTYPE=int8"):
        choose("auto", found, None)
    assert choose("auto", found, None, "int8").engine == "openvino"
    for path in (folder / "openvino-int8").iterdir():
        path.rename(folder / path.name)
    assert "no weights" in refusal(folder, tmp_path)


@pytest.mark.parametrize("keep", [0, 7, 8, 200, -1])
def test_r12_truncated_weights_are_refused(model: Path, tmp_path: Path, keep: int) -> None:
    """R12. Fails when an interrupted download is loaded up to where it ends."""
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "damaged" in refusal(model, tmp_path)


@pytest.mark.parametrize("header", [b"\xff" * 8, (2**40).to_bytes(8, "little"), (2).to_bytes(8, "little") + b"[]"])
def test_r12_a_malformed_weights_header_is_refused(model: Path, tmp_path: Path, header: bytes) -> None:
    """R12. Fails when a header's claimed size is believed."""
    (model / "model.safetensors").write_bytes(header + b"{}" * 100)
    assert "damaged" in refusal(model, tmp_path)


@pytest.mark.parametrize(
    "index",
    ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": "../../secret"}}', '{"weight_map": {"a": ["b"]}}'],
)
def test_r12_an_index_may_only_name_tensors_that_are_there(model: Path, tmp_path: Path, index: str) -> None:
    """R12. Fails when a shards' index reaches out of the folder, or promises what no shard holds."""
    (model / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json" in refusal(model, tmp_path)


@pytest.mark.parametrize(("shards", "zipped"), [(1, True), (1, False), (3, True)])
def test_r12_pickled_weights_are_converted_once(tmp_path: Path, shards: int, zipped: bool) -> None:
    """Fails when a converted model differs from its pickle, tied weights included, or is converted anew each time."""
    model, cache = build_qwen2(tmp_path / "model"), tmp_path / "cache"
    state = to_pickle(model, shards, zipped)
    folder = resolve(str(model), cache)
    converted = {key: value for path in folder.path.glob("*.safetensors") for key, value in load_file(path).items()}
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[key], state[key]) for key in state)
    assert AutoModelForCausalLM.from_pretrained(folder.path).config.model_type == "qwen2"
    before = folder.path.stat().st_mtime_ns
    assert resolve(str(model), cache).path.stat().st_mtime_ns == before
    assert {path.name for path in cache.iterdir()} == {folder.path.name, "convert.lock"}


@pytest.mark.parametrize("kind", ["pickle", "zip", "legacy", "values"])
def test_r12_a_pickle_that_runs_code_is_refused(model: Path, tmp_path: Path, kind: str) -> None:
    """R12. Fails when loading a model can run a command on this machine."""
    canary, path = tmp_path / "canary", model / "pytorch_model.bin"
    (model / "model.safetensors").unlink()
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"weight": Bomb(canary)}))
    elif kind == "values":
        torch.save({"weight": "no tensor"}, path)
    else:
        torch.save({"weight": Bomb(canary)}, path, _use_new_zipfile_serialization=kind == "zip")
    assert "ask its publisher for safetensors" in refusal(model, tmp_path / "cache")
    assert not canary.exists()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["convert.lock"]


def test_r12_the_converter_has_no_network() -> None:
    """R12. Fails when the process that reads pickles can reach even this machine's own ports."""
    code = """
import socket
from parley.engine.runners.convert import leave_network
listener = socket.create_server(("127.0.0.1", 0))
if not leave_network():
    print("refused")
else:
    try:
        socket.create_connection(listener.getsockname(), timeout=5)
    except OSError:
        print("cut off")
"""
    done = run_python(code)
    if done.stdout.strip() == "refused":
        pytest.skip("this kernel lets no process of this user leave the network")
    assert done.stdout.strip() == "cut off", done.stderr
