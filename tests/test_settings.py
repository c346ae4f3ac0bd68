"""R17: a wrong setting stops the start, with one line that names it and its value."""

import hashlib
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest

from parley.api.exposure import exposure_fault, is_exposed, is_private, listening_address
from parley.api.keys import load_keys
from parley.api.listener import listener
from parley.contract.limits import Limits
from parley.settings import Settings, SettingsError
from tests.conftest import POCKET, serve
from tests.soak import SOAK

HASH = hashlib.sha256(b"key").hexdigest()

BAD = [
    ("PARLEY_ENGINE", "onnx"),
    ("PARLEY_DEVICE", "gpu"),
    ("PARLEY_DEVICE", "cuda:x"),
    ("PARLEY_DTYPE", "fp32"),
    ("PARLEY_THREADS", "0"),
    ("PARLEY_THREADS", "two"),
    ("PARLEY_MAX_BATCH", "-1"),
    ("PARLEY_MAX_BATCH", ""),
    ("PARLEY_MAX_QUEUE", "1e9"),
    ("PARLEY_MODEL", ""),
    ("PARLEY_CONTEXT_POLICY", "forget"),
    ("PARLEY_MAX_TOKENS", "0"),
    ("PARLEY_LOAD_TIMEOUT", "0"),
    ("PARLEY_STEP_TIMEOUT", "soon"),
    ("PARLEY_DRAIN_GRACE", "-1"),
    ("PARLEY_ANSWER_TIMEOUT", "nan"),
    ("PARLEY_IDEMPOTENCY_WINDOW", "0"),
    ("PARLEY_ALLOW_ANONYMOUS", "perhaps"),
    ("PARLEY_CORS_ORIGINS", "chat.example.com"),
    ("PARLEY_CORS_ORIGINS", "https://a.example/path"),
    ("PARLEY_LIMIT_BODY_BYTES", "10"),
    ("PARLEY_LIMIT_N", "0"),
    ("PARLEY_LIMIT_NESTING", "100000"),
    ("PARLEY_LIMIT_STOP", "-1"),
    ("PARLEY_LIMIT_SCHEMA_DEPTH", "deep"),
]

UPSTREAM = {"PARLEY_ENGINE": "upstream", "PARLEY_UPSTREAM_URL": "http://127.0.0.1:9"}


@pytest.mark.parametrize("policy", ["drop_oldest_turns", "keep_recent"])
def test_a_policy_that_an_upstream_would_not_keep_is_refused(policy: str) -> None:
    """Fails when an operator's policy is dropped without a word, as nobody here counts an upstream's tokens."""
    assert Settings.from_env({**UPSTREAM, "PARLEY_CONTEXT_POLICY": "error"}).context_policy == "error"
    with pytest.raises(SettingsError, match=f"PARLEY_CONTEXT_POLICY={policy}: .*an upstream keeps to its own"):
        Settings.from_env({**UPSTREAM, "PARLEY_CONTEXT_POLICY": policy})


MISNAMED = [
    ("PARLEY_MAX_BACTH", "PARLEY_MAX_BATCH"),
    ("PARLEY_LIMIT_MESAGES", "PARLEY_LIMIT_MESSAGES"),
    ("PARLEY_LIMITS", "PARLEY_LIMIT_N"),
    ("PARLEY_KEY_FILE", "PARLEY_KEYS_FILE"),
    ("PARLEY_max_batch", None),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_r17_a_bad_value_is_named(name: str, value: str) -> None:
    """Fails when a bad value is replaced by a default, or told without its name (R17)."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({name: value})
    assert str(caught.value).startswith(f"{name}={value}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["PARLEY_CACHE", "PARLEY_KEYS_FILE", "PARLEY_MODEL"])
def test_r17_a_home_that_there_is_none_of_is_told(name: str) -> None:
    """Fails when the folder of a user who does not exist gives a traceback (R17)."""
    with pytest.raises(SettingsError, match=f"^{name}=~nosuch/x: .*there is no home directory for ~nosuch$"):
        Settings.from_env({name: "~nosuch/x"})


def test_r17_a_bad_value_of_two_lines_is_told_in_one() -> None:
    """Fails when a value that was read from a file with its line break makes two lines of the message (R17)."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({"PARLEY_SERVED_MODEL_NAME": "two\nlines"})
    assert str(caught.value).startswith(r"PARLEY_SERVED_MODEL_NAME='two\nlines': ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "meant"), MISNAMED)
def test_r17_a_misspelt_name_is_told(name: str, meant: str | None) -> None:
    """Fails when a setting with a typing error does nothing, and nobody is told (R17)."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({name: "1"})
    assert str(caught.value) == f"{name} is not a setting" + (f"; did you mean {meant}?" if meant else "")


def test_files_are_the_same_ones_for_a_worker_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails when a Bento's workers look inside the Bento for the keys, model or cache that `serve` was given."""
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    given = {"PARLEY_KEYS_FILE": "keys.toml", "PARLEY_MODEL": "model", "PARLEY_CACHE": "cache"}
    assert Settings.from_env(given).placed() == {name: str(tmp_path / value) for name, value in given.items()}


def test_every_setting_and_limit_is_read() -> None:
    """Fails when a variable has no field, or a limit's default replaces what was set."""
    settings = Settings.from_env(
        {"PARLEY_LIMIT_N": "3", "PARLEY_MAX_BATCH": "7", "PARLEY_CORS_ORIGINS": "https://a, http://b:1", "PATH": "/bin"}
    )
    assert (settings.limits.n, settings.max_batch) == (3, 7)
    assert settings.cors_origins == ("https://a", "http://b:1")
    assert settings.limits.stop == Limits().stop
    assert Settings.from_env({"PARLEY_UI_PRICE_INPUT": "1", "PARLEY_URL": "http://x"}) == Settings()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "keys: Field required"),
        ("keys = []", "keys: List should have at least 1 item"),
        ("not toml", "not TOML"),
        ("\x00", "not TOML"),
        ('[[keys]]\nname = "a"', "keys[0].sha256: Field required"),
        ('[[keys]]\nname = "a"\nsha256 = "short"', "keys[0].sha256: String should match"),
        (f'[[keys]]\nname = "a b"\nsha256 = "{HASH}"', "keys[0].name: String should match"),
        (f'[[keys]]\nname = "a"\nsha256 = "{HASH}"\nrequests = 1', "keys[0].requests: Extra inputs"),
        (f'[[keys]]\nname = "a"\nsha256 = "{HASH}"\ntokens_per_minute = 0', "keys[0].tokens_per_minute"),
        (
            f'[[keys]]\nname = "a"\nsha256 = "{HASH}"\n[[keys]]\nname = "b"\nsha256 = "{HASH}"',
            "two keys have the same sha256",
        ),
        (
            f'[[keys]]\nname = "a"\nsha256 = "{HASH}"\n[[keys]]\nname = "a"\nsha256 = "{"0" * 64}"',
            "two keys have the same name",
        ),
    ],
)
def test_r17_a_bad_key_file_is_told_without_its_hashes(tmp_path: Path, text: str, fault: str) -> None:
    """Fails when a service with a broken key file starts without keys, or a hash gets into the log (R17)."""
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_keys(path)
    assert str(caught.value).startswith(f"PARLEY_KEYS_FILE={path}: {fault}")
    assert HASH not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "private"),
    [
        *[("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)],
        *[("::", False), ("10.0.0.1", False), ("192.168.1.1", False), ("an unknown address", False), ("", False)],
    ],
)
def test_r13_only_loopback_is_private(address: str, private: bool) -> None:
    """Fails when a service on a network takes itself for one on a desk (R13)."""
    assert is_private(address) == private
    assert is_exposed(address, open_to_all=True) != private
    assert not is_exposed(address, open_to_all=False)
    assert bool(exposure_fault(address, open_to_all=True, allowed=False)) != private
    assert exposure_fault(address, open_to_all=True, allowed=True) == ""
    assert exposure_fault(address, open_to_all=False, allowed=False) == ""


def test_r13_a_process_without_a_listener_is_not_taken_for_private() -> None:
    """Fails when another way to start the service skips the question (R13)."""
    for arguments in (["worker", "--fd"], []):
        with listener(arguments) as listening:
            assert not is_private(listening_address(listening))


def broken_model(tmp_path: Path) -> str:
    """A model folder whose weights are cut short."""
    folder = tmp_path / "cut"
    shutil.copytree(POCKET, folder, ignore=shutil.ignore_patterns("openvino*"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return str(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PARLEY_KEYS_FILE", "/nonexistent/keys.toml"),
        ("PARLEY_LIMIT_N", "many"),
        ("PARLEY_CORS_ORIGINS", "example.com"),
        ("PARLEY_ENGINE", "seq2seq"),
        ("PARLEY_MODEL", "broken_model"),
        *(BAD if SOAK else []),
    ],
)
def test_r17_a_real_start_ends_with_one_line(name: str, value: str, tmp_path: Path) -> None:
    """Fails when a wrong setting gives a traceback, or a service that BentoML starts over and over (R17)."""
    value = broken_model(tmp_path) if value == "broken_model" else value
    with serve({name: value, "PARLEY_CACHE": str(tmp_path)}, ready=False) as served:
        began = time.monotonic()
        assert served.process.wait(30) == 1
        print(f"\nR17: {name} ends the start after {time.monotonic() - began:.1f} s")
        (line,) = [line for line in served.log().splitlines() if line.startswith("parley: ")]
    assert value.rsplit("/", 1)[-1] in line
    assert "Traceback" not in line


def test_a_start_that_downloads_ends_when_it_is_told_to(tmp_path: Path) -> None:
    """Fails when the first process of a container, to which Linux hands only what it handles, downloads on."""
    with socket.create_server(("127.0.0.1", 0)) as hub:
        hub.settimeout(60)
        address = f"http://127.0.0.1:{hub.getsockname()[1]}"
        environment = {
            "PARLEY_MODEL": "owner/name",
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "0",
        }
        with serve(environment, ready=False) as served:
            asked, _ = hub.accept()
            with asked:
                served.process.terminate()
                assert served.process.wait(20) == 128 + signal.SIGTERM
