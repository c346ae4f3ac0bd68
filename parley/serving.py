"""From settings to a running `Chat`: which model, which engine, which prompt style. Wiring only."""

from collections.abc import Callable, Mapping

from parley.api.admission import Admission
from parley.api.chat import Chat
from parley.engine.engine import Engine, State
from parley.engine.export.exporter import export
from parley.engine.hardware import core_quota
from parley.engine.launch import Launch, choose
from parley.engine.model import ModelFolder, resolve
from parley.engine.process import EngineProcess
from parley.engine.runner import ModelInfo, Placement
from parley.engine.upstream.engine import UpstreamEngine
from parley.engine.upstream.patience import Patience
from parley.engine.upstream.transport import Address
from parley.engine.watch import Limits
from parley.prompt import Builder, LastMessage, Passage, PromptBuilder, Style, style_for
from parley.settings import Settings
from parley.telemetry.exporter import create_exporter
from parley.telemetry.http import Names
from parley.telemetry.metrics import Load
from parley.telemetry.observer import Observer
from parley.tokenizer import Tokenizer


def launch_for(settings: Settings) -> tuple[Launch, ModelFolder | None]:
    """Finds the model and chooses its engine; downloads, converts or exports it if that is still to be done.

    Raises:
        ModelError: one line with the model, the cause and the way out.
    """
    cache_bytes = None if settings.kv_cache_gb is None else int(settings.kv_cache_gb * 2**30)
    threads = settings.threads or core_quota()
    placement = Placement(settings.device, settings.dtype, threads, settings.max_batch, cache_bytes)
    if settings.engine == "echo":
        return Launch("echo", "set by PARLEY_ENGINE", "echo", None, placement), None
    folder = resolve(settings.model, settings.cache)
    choice = choose(settings.engine, folder, settings.device, settings.dtype)
    if choice.engine == "openvino" and folder.exported(settings.dtype) is None:
        export(folder, settings.dtype or "float32", settings.cache)
    path, exports = str(folder.path), str(folder.exports)
    return Launch(choice.engine, choice.reason, folder.name, path, placement, exports), folder


def prepare(settings: Settings) -> None:
    """What takes long and is done once, before any process of the service starts; raises what `launch_for` raises."""
    if settings.upstream_url is None:
        launch_for(settings)


def create_chat(settings: Settings) -> Chat:
    """A `Chat` whose engine is not started yet; raises what `launch_for` raises."""
    admission = Admission(settings.max_batch, settings.max_queue)
    engine, builder, name = backend(settings)
    served = settings.served_model_name or name
    return Chat(engine, builder, admission, settings.max_tokens, served, settings.answer_timeout)


def backend(settings: Settings) -> tuple[Engine, Callable[[ModelInfo], Builder], str]:
    """The engine, what makes the prompts that it reads, and the name it is served under."""
    if settings.upstream_url is not None:
        patience = Patience(
            first_byte=settings.step_timeout, silence=settings.step_timeout, total=settings.answer_timeout
        )
        key = settings.upstream_api_key.get_secret_value() if settings.upstream_api_key else None
        address = Address(settings.upstream_url, key, settings.upstream_model)
        passage = Passage(settings.system_prompt)
        return UpstreamEngine(address, patience), lambda _: passage, settings.upstream_model or "upstream"
    launch, folder = launch_for(settings)
    limits = Limits(load=settings.load_timeout, step=settings.step_timeout)
    return EngineProcess(launch, limits), builder_for(settings, folder), launch.name


def create_observer(chat: Chat, names: Names, environ: Mapping[str, str]) -> Observer:
    """Metrics, logs and, where an exporter is set, traces of what `chat` serves."""

    def load() -> Load:
        health = chat.engine.health()
        ready = health.state is State.READY
        return Load(chat.admission.running, chat.admission.waiting, ready, health.restarts, health.cache_usage)

    return Observer(chat.served, names, load, create_exporter(environ))


def builder_for(settings: Settings, folder: ModelFolder | None) -> Callable[[ModelInfo], PromptBuilder]:
    """What makes the prompt builder once the engine has told the model's context length."""
    style: Style = LastMessage() if folder is None else style_for(Tokenizer.load(folder.path), folder.model_type)
    shared = folder is None or not folder.encoder_decoder

    def build(info: ModelInfo) -> PromptBuilder:
        return PromptBuilder(style, info.context_length, shared, settings.system_prompt, settings.context_policy)

    return build
