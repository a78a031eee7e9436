"""The ASGI application: routes, a page for people, and what each request passes on its way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse

import neuraverse
from neuraverse.registry import problems
from neuraverse.registry.bodies import BodyLimit
from neuraverse.registry.config import Settings
from neuraverse.registry.finding.searches import Asked, search
from neuraverse.registry.limits import MAX_PAGE, MAX_QUERY_CHARACTERS
from neuraverse.registry.logs import Access
from neuraverse.registry.metrics import Measure, Metrics
from neuraverse.registry.page import page
from neuraverse.registry.routes import accounts, blobs, events, finding, fleet, operating, skills, webhooks
from neuraverse.registry.routes.fields import ProblemDocument
from neuraverse.registry.routes.finding import Cursor
from neuraverse.registry.service import Registry
from neuraverse.registry.tenants.identify import Identify

_CSP = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'"


def create_app(settings: Settings | Path | str) -> FastAPI:
    """The registry as an ASGI application.

    Args:
        settings: How it is set up; or the folder that holds it, all else by default.

    Raises:
        ConfigError: An address of the settings is malformed.
    """
    if not isinstance(settings, Settings):
        settings = Settings.load(data=Path(settings))
    registry, metrics = Registry(settings), Metrics()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await registry.open(serving=True)
        yield
        await registry.close()

    app = FastAPI(
        title="neuraverse registry",
        version=neuraverse.__version__,
        summary="Skills that robots teach each other: signed, versioned, with their lineage.",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # these pages load scripts from elsewhere; /openapi.json says the same
        redoc_url=None,
    )
    app.state.registry = registry
    app.add_middleware(Identify, access=registry.access, settings=settings)
    app.add_middleware(BodyLimit, settings=settings)
    app.add_middleware(Measure, metrics=metrics)
    app.add_middleware(Access)
    problems.install(app)
    for router in (  # what is asked for most comes first: routes are tried in order
        skills.router(registry),
        blobs.router(registry),
        events.router(registry),
        finding.router(registry),
        fleet.router(registry),
        accounts.router(registry),
        webhooks.router(registry),
        operating.router(registry, metrics),
    ):
        app.include_router(router)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def home(request: Request, q: str = "", cursor: Cursor = "") -> HTMLResponse:
        asked = Asked(q=q[:MAX_QUERY_CHARACTERS])
        found = await registry.database.read(
            search, request.state.caller, registry.rankings, asked, cursor, MAX_PAGE
        )
        html = page(found["skills"], found["next"], q, str(request.base_url).rstrip("/"))
        return HTMLResponse(html, headers={"Content-Security-Policy": _CSP})

    _describe_problems(app)
    return app


def _describe_problems(app: FastAPI) -> None:
    """Put the schema of refusals where the routes point to; FastAPI adds only models that it returns."""
    make = app.openapi

    def openapi() -> dict[str, object]:
        document = make()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas.setdefault("ProblemDocument", ProblemDocument.model_json_schema())
        schemes = document["components"].setdefault("securitySchemes", {})
        schemes["token"] = {"type": "http", "scheme": "bearer", "description": "`neuraverse login` gets one"}
        document["security"] = [{}, {"token": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]
