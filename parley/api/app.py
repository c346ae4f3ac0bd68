"""The FastAPI app that the Bento mounts: every route that is not native to BentoML."""

import time

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse, Response

from parley.api import completions
from parley.api.errors import on_invalid, on_parley_error
from parley.contract.errors import ParleyError


def create_app() -> FastAPI:
    """The app; the worker sets `app.state.chat` and `app.state.observer` before the first request."""
    app = FastAPI(title="Parley", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(ParleyError, on_parley_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.include_router(completions.router(int(time.time())))

    @app.get("/", tags=["Health"])
    async def root() -> dict[str, str]:
        """Whether the service is up; `/readyz` says whether it can answer."""
        return {"status": "OK!"}

    @app.get("/metrics", include_in_schema=False)
    def metrics(request: Request) -> Response:
        """Everything in Prometheus' format; on a thread, as it takes some milliseconds."""
        body, media_type = request.app.state.observer.metrics(request.headers.get("accept", ""))
        return Response(body, media_type=media_type)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        """Interactive documentation of every route, from files that BentoML ships: no other host is asked."""
        return get_swagger_ui_html(
            openapi_url="docs.json",
            title="Parley API",
            swagger_js_url="static_content/swagger-ui-bundle.js",
            swagger_css_url="static_content/swagger-ui.css",
            swagger_favicon_url="static_content/favicon-light-32x32.png",
        )

    return app
