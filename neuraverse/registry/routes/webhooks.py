"""Webhooks of organisations, and what they did not take."""

from __future__ import annotations

import secrets
from typing import Annotated, Literal

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from neuraverse.errors import NetworkError, UsageError
from neuraverse.registry import events
from neuraverse.registry.events import Wanted
from neuraverse.registry.limits import MAX_URL
from neuraverse.registry.problems import Problem
from neuraverse.registry.routes.accounts import Id
from neuraverse.registry.routes.fields import LABEL, Label, refusals
from neuraverse.registry.service import Registry
from neuraverse.registry.tables import now
from neuraverse.registry.tenants import access
from neuraverse.registry.tenants.identify import Who
from neuraverse.registry.webhooks import hooks, outbound
from neuraverse.registry.webhooks.deliveries import as_json

_FRESH = {"Cache-Control": "no-store"}
_Type = Literal[
    "published",
    "alias",
    "unalias",
    "yanked",
    "unyanked",
    "revoked",
    "deprecated",
    "undeprecated",
    "visibility",
    "fleet",
]


class NewWebhook(BaseModel):
    """Where to send which events. What is empty lets all pass that the organisation sees."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"url": "https://hooks.example/x", "org": "acme"}]}
    )

    url: Annotated[str, StringConstraints(max_length=MAX_URL)] = Field(description="http or https")
    org: Annotated[str, StringConstraints(pattern=f"^({LABEL})?$")] = ""
    skill: Annotated[str, StringConstraints(pattern=f"^({LABEL}/{LABEL})?$")] = ""
    interface: Annotated[str, StringConstraints(pattern="^(sha256:[0-9a-f]{64})?$")] = ""
    types: Annotated[list[_Type], Field(max_length=len(events.TYPES))] = []

    def wanted(self) -> Wanted:
        """Which events."""
        types = tuple(dict.fromkeys(self.types))
        return Wanted(org=self.org, name=self.skill, interface=self.interface, types=types)


def router(registry: Registry) -> APIRouter:
    """The routes."""
    api, database = APIRouter(tags=["webhooks"]), registry.database
    networks = registry.settings.webhook_networks
    one = "/v1/orgs/{org}/webhooks/{webhook}"

    @api.get("/v1/orgs/{org}/webhooks", responses=refusals(404))
    async def listed(org: Label, caller: Who) -> JSONResponse:
        """Webhooks, and how each does."""
        return JSONResponse({"webhooks": await database.read(hooks.listed, caller, org)}, headers=_FRESH)

    @api.post("/v1/orgs/{org}/webhooks", status_code=201, responses=refusals(404, 409))
    async def add(org: Label, body: NewWebhook, caller: Who) -> JSONResponse:
        """Send events to an address from now on. The answer has the secret, now and never again."""
        await database.read(access.needs, caller, org, "admin", "add webhooks")
        try:
            await outbound.addresses(outbound.Target.parse(body.url), networks)
        except (UsageError, NetworkError) as error:
            raise Problem(422, "address", error.message, remedy=error.remedy, field="url") from error
        made = await database.write(hooks.add, caller, org, body.url, body.wanted())
        registry.deliveries.wake()
        return JSONResponse(made, 201, headers=_FRESH)

    @api.delete(one, status_code=204, responses=refusals(404))
    async def remove(org: Label, webhook: Id, caller: Who) -> Response:
        """Send nothing more."""
        await database.write(hooks.remove, caller, org, webhook)
        return Response(status_code=204)

    @api.get(f"{one}/dead-letters", responses=refusals(404))
    async def dead(org: Label, webhook: Id, caller: Who) -> JSONResponse:
        """Events that were not taken, however often they were tried."""
        found = await database.read(hooks.dead, caller, org, webhook)
        return JSONResponse({"dead_letters": found}, headers=_FRESH)

    @api.post(f"{one}/dead-letters/retry", responses=refusals(404, 409))
    async def retry(org: Label, webhook: Id, caller: Who) -> JSONResponse:
        """Try each once more, in order, until one is not taken."""
        count = await database.write(hooks.retry, caller, org, webhook)
        registry.deliveries.wake()
        return JSONResponse({"retried": count}, headers=_FRESH)

    @api.post(f"{one}/test", responses=refusals(404))
    async def test(org: Label, webhook: Id, caller: Who) -> JSONResponse:
        """Send a message of the type `test` now; what came of it."""
        row = await database.read(hooks.find, caller, org, webhook, "test webhooks")
        body = as_json({"type": "test", "at": now(), "webhook": webhook})
        outcome = await registry.deliveries.try_out(row, f"test-{secrets.token_hex(8)}", body)
        answer = {"taken": outcome.taken, "status": outcome.status or None, "error": outcome.error}
        return JSONResponse(answer, headers=_FRESH)

    return api
