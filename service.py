"""What BentoML loads: settings, engine, API. Wiring only."""

import asyncio
import gc
import os
import signal
import sys
from typing import Any

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
# Metrics are kept in memory: BentoML's folder of metric files is shared by, and emptied at the start of, every service.
os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)

import bentoml

from parley.api.access import Access
from parley.api.app import create_app
from parley.api.cors import Cors
from parley.api.drain import drain_on_signals
from parley.api.errors import ErrorResponse
from parley.api.exposure import exposure_fault, is_exposed, listening_address
from parley.api.gate import Gate
from parley.api.idempotency import Recordings
from parley.api.keys import load_keys
from parley.api.listener import cut_stalled_readers, listener
from parley.api.native import reply_to
from parley.api.openapi import document
from parley.api.protocol import use_protocol
from parley.api.server import use_server
from parley.api.unbounded import use_no_time_limit
from parley.contract.chat import ChatReply, ChatRequest
from parley.contract.errors import ParleyError
from parley.engine.model import ModelError
from parley.serving import create_chat, create_observer, prepare
from parley.settings import Settings, SettingsError
from parley.startup import end_with_parent, fail, listen_for_failure, one_line, tell_failure
from parley.telemetry.exporter import ExporterError, exporter_is_set
from parley.telemetry.http import Names
from parley.telemetry.logs import configure_logging, report_loop_errors

try:
    settings = Settings.from_env(os.environ)
    keyring = load_keys(settings.keys_file)
except SettingsError as error:
    fail(str(error))

use_protocol()
use_server()
use_no_time_limit()
app = create_app()
app.state.openapi = document(app.routes, settings.limits, keyed=not keyring.open_to_all)


# `Access` does what BentoML's layers for metrics, logs and traces do, at a fraction of their cost for each token.
@bentoml.service(
    name="parley",
    workers=1,
    traffic={"timeout": 2 * int(settings.answer_timeout) + 60},  # for BentoCloud and clients; no limit of ours
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
)
@bentoml.asgi_app(app, path="/")
class Parley:
    """Chat with a conversational model."""

    @bentoml.on_deployment
    @staticmethod
    def prepare() -> None:
        """Once, before any worker: finds, downloads or converts the model, or ends with one line."""
        # Until the supervisor has a handler of its own, Linux drops the signal for the first process of a container.
        # At once: an exception would wait for the threads of a download.
        signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
        os.environ.update(settings.placed())  # workers have it from here
        try:
            prepare(settings)
            exporter_is_set(os.environ)
        except (ModelError, ExporterError, OSError) as error:
            fail(one_line(error))
        listen_for_failure()

    def __init__(self) -> None:
        end_with_parent(signal.SIGTERM)
        with listener(sys.argv) as listening:
            address = listening_address(listening)
            cut_stalled_readers(listening)
        if fault := exposure_fault(address, keyring.open_to_all, settings.allow_anonymous):
            tell_failure(fault)
        if is_exposed(address, keyring.open_to_all):
            told = f"listening on {address} without API keys (PARLEY_ALLOW_ANONYMOUS=true): everybody is let in"
            print(f"parley: {told}", file=sys.stderr, flush=True)
        try:
            self._chat = create_chat(settings)
        except Exception as error:  # noqa: BLE001 - tokenizers raises no class of its own, and what raises is started again for ever
            tell_failure(f"{settings.model}: {one_line(error)}")
        app.state.chat = self._chat
        context = bentoml.server_context
        names = Names(context.bento_name, context.bento_version, context.service_name)
        try:
            app.state.observer = create_observer(self._chat, names, os.environ)
        except ExporterError as error:
            tell_failure(str(error))
        configure_logging()

    @bentoml.on_startup
    async def start(self) -> None:
        """Starts the engine; the service listens while it loads."""
        report_loop_errors()
        await self._chat.engine.start()
        drain_on_signals(self._chat.engine.drain, settings.drain_grace)
        self._loading = asyncio.create_task(self._end_unless_loaded())

    @bentoml.on_shutdown
    async def stop(self) -> None:
        """Sends the last traces."""
        await asyncio.to_thread(app.state.observer.close)

    async def _end_unless_loaded(self) -> None:
        health = await self._chat.engine.settled()
        if self._chat.engine.info is None:
            tell_failure(health.detail)
        gc.collect()
        gc.freeze()  # what is there by now stays; looking at it again and again made the slowest tokens slow

    @bentoml.api(route="/chat")
    async def chat(self, body: ChatRequest, /) -> ChatReply:
        """One reply, to either published form of a chat request."""
        request = service.context.request
        try:
            return await reply_to(self._chat, body, request)  # type: ignore[return-value]  # BentoML passes it through
        except ParleyError as error:
            return ErrorResponse(error)  # type: ignore[return-value]  # likewise


service: Any = Parley  # `bentoml.service` made one of it
service.add_asgi_middleware(
    Access, observer=lambda: app.state.observer, paths=lambda: service.openapi_spec.asdict()["paths"]
)
if settings.cors_origins:
    service.add_asgi_middleware(Cors, origins=settings.cors_origins)
service.add_asgi_middleware(
    Gate,
    keyring=keyring,
    limits=settings.limits,
    recordings=Recordings(settings.idempotency_window),
    health=lambda: app.state.chat.engine.health(),  # noqa: PLW0108 - there is no chat before a worker has made it
    native={"/chat": ChatRequest},
    refuse_if_full=lambda: app.state.chat.refuse_if_full(),  # noqa: PLW0108 - likewise
)
