"""For operators: health and metrics."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError

import neuraverse
from neuraverse.errors import StorageError
from neuraverse.registry import index
from neuraverse.registry.events import head
from neuraverse.registry.metrics import Metrics
from neuraverse.registry.routes.fields import refusals
from neuraverse.registry.service import Registry
from neuraverse.registry.tenants.access import forbidden
from neuraverse.registry.tenants.identify import Who

_PROBE_S = 5.0


def router(registry: Registry, metrics: Metrics) -> APIRouter:
    """The routes."""
    api = APIRouter(tags=["operating"])

    @api.get("/health/live")
    async def live() -> dict[str, str]:
        """Whether the process answers; restart it if not."""
        return {"status": "ok", "version": neuraverse.__version__}

    @api.get("/health/ready", responses={503: refusals(503)[503]})
    async def ready() -> JSONResponse:
        """Whether database and store can be used; send no requests if not."""
        failures: dict[str, str] = {}
        for name, ask in (
            ("database", lambda: registry.database.read(head)),
            ("store", registry.store.probe),
        ):
            try:
                async with asyncio.timeout(_PROBE_S):
                    await ask()
            except (SQLAlchemyError, StorageError, OSError, TimeoutError) as error:
                failures[name] = type(error).__name__  # no more: addresses are nobody else's business
        body = {"status": "ok" if not failures else "failing", **failures}
        return JSONResponse(body, 503 if failures else 200, {"Cache-Control": "no-store"})

    @api.get(
        "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **refusals()}
    )
    async def prometheus(caller: Who) -> Response:
        """Counters for Prometheus; for operators, unless the registry is open: they tell of all tenants."""
        if not (caller.host or caller.open):
            raise forbidden(caller, "read the metrics", "host")
        counts = await registry.database.read(index.counts)
        return Response(metrics.render(counts), media_type="text/plain; version=0.0.4")

    return api
