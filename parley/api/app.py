"""The FastAPI app that the Bento mounts: every route that is not native to BentoML."""

import time

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from parley.api import completions, tokenize
from parley.api.docs import docs_page
from parley.api.errors import on_invalid, on_parley_error
from parley.contract.errors import ParleyError


def create_app() -> FastAPI:
    """The app; `service.py` sets `app.state.openapi`, and the worker `app.state.chat` and `app.state.observer`."""
    app = FastAPI(title="Parley", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.add_exception_handler(ParleyError, on_parley_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.include_router(completions.router(int(time.time())))
    app.include_router(tokenize.router())

    @app.get("/", tags=["Health"])
    async def root() -> dict[str, str]:
        """Whether the service is up; `/readyz` says whether it can answer."""
        return {"status": "OK!"}

    @app.head("/", include_in_schema=False)
    async def head() -> Response:
        """The same without its body; BentoML's own page would answer otherwise."""
        return Response(media_type="application/json")

    @app.get("/metrics", tags=["Health"], response_class=PlainTextResponse)
    def metrics(request: Request) -> Response:
        """Everything in Prometheus' format; on a thread, as it takes some milliseconds."""
        return Response(request.app.state.observer.metrics(), headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        """Interactive documentation."""
        return docs_page()

    @app.get("/docs.json", include_in_schema=False)
    async def openapi(request: Request) -> JSONResponse:
        """What `/docs` shows; BentoML's own document would answer otherwise."""
        return JSONResponse(request.app.state.openapi)

    return app
