"""Organisations, members, robots, tokens and keys; and signing in."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from fastapi import Path as InPath
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from neuraverse.keys import MAX_KEY_BYTES
from neuraverse.registry.index import ALIAS_PATTERN
from neuraverse.registry.limits import MAX_TOKEN_HOURS
from neuraverse.registry.routes.fields import LABEL, Label, Visibility, refusals
from neuraverse.registry.service import Registry
from neuraverse.registry.tenants import accounts, orgs, robots
from neuraverse.registry.tenants.access import RIGHTS, ROLES
from neuraverse.registry.tenants.identify import Who

_FRESH = {"Cache-Control": "no-store"}
_Name = Annotated[str, StringConstraints(pattern=f"^{LABEL}$")]
_Role = Literal["reader", "publisher", "maintainer", "owner"]
_Scope = Literal["read", "publish", "curate", "fleet", "report", "admin", "host"]
_Hours = Annotated[float, Field(gt=0, le=MAX_TOKEN_HOURS)]
_Quota = Annotated[int | None, Field(ge=0, le=2**53)]
_Small = Annotated[int | None, Field(ge=0, le=2**31 - 1)]
Id = Annotated[str, InPath(pattern="^[0-9a-f]{16}$", examples=["0f" * 8])]
Fingerprint = Annotated[str, InPath(pattern="^[0-9a-f]{64}$", examples=["ab" * 32])]
Account = Annotated[str, InPath(pattern=f"^{LABEL}$", examples=["alice"])]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Code(_Body):
    """An invitation, and a name for whoever has no account yet."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"code": "nvi_", "name": "alice"}]}
    )

    code: str = Field(max_length=100)
    name: Annotated[str, StringConstraints(pattern=f"^({LABEL})?$")] = ""


class NewOrg(_Body):
    """An organisation to be."""

    name: _Name
    visibility: Visibility = "private"


class OrgChange(_Body):
    """What shall be different; null gives a quota back to the registry's own."""

    visibility: Visibility | None = None
    protected: Annotated[
        list[Annotated[str, StringConstraints(pattern=ALIAS_PATTERN)]] | None, Field(max_length=100)
    ] = None
    quota_bytes: _Quota = None
    quota_versions: _Quota = None
    quota_requests: _Small = None
    quota_events: _Small = None


class NewRole(_Body):
    """A member's role."""

    role: _Role


class Invite(_Body):
    """Who is invited to what, and for how long."""

    role: _Role = "reader"
    hours: _Hours = accounts.INVITATION_HOURS


class NewToken(_Body):
    """A token to be."""

    label: Annotated[str, StringConstraints(max_length=100)] = ""
    scopes: Annotated[list[_Scope], Field(max_length=len(RIGHTS))] = ["read"]
    org: Annotated[str | None, StringConstraints(pattern=f"^{LABEL}$")] = None
    hours: _Hours = accounts.LOGIN_HOURS


class RobotToken(_Body):
    """What a robot's token allows."""

    scopes: Annotated[list[_Scope], Field(max_length=len(RIGHTS))] = sorted(ROLES["robot"])
    hours: _Hours = robots.ROBOT_HOURS


class NewRobot(RobotToken):
    """A robot to be."""

    name: _Name


class NewKey(_Body):
    """A publisher's key."""

    public_key: str = Field(max_length=MAX_KEY_BYTES, description="PEM")


def router(registry: Registry) -> APIRouter:
    """The routes."""
    api = APIRouter(tags=["accounts"])
    _add_sign_in(api, registry)
    _add_tokens(api, registry)
    _add_orgs(api, registry)
    _add_members(api, registry)
    _add_robots(api, registry)
    _add_keys(api, registry)
    return api


def _add_sign_in(api: APIRouter, registry: Registry) -> None:
    @api.post("/v1/login", responses=refusals(409))
    async def login(body: Code, caller: Who) -> JSONResponse:
        """Use an invitation, once: become a member, or the registry's operator. The answer has a token."""
        return _made(await registry.rule(accounts.log_in, caller, body.code, body.name), 200)

    @api.post("/v1/logout", status_code=204, responses=refusals(404))
    async def logout(caller: Who) -> Response:
        """End the token that asks."""
        await registry.rule(accounts.revoke_token, caller, caller.token)
        return Response(status_code=204)

    @api.get("/v1/whoami", responses=refusals())
    async def whoami(caller: Who) -> JSONResponse:
        """Who the token stands for, and what it allows; null for nobody."""
        if caller.account is None:
            return JSONResponse({"account": None, "open": caller.open}, headers=_FRESH)
        return JSONResponse(await registry.database.read(accounts.whoami, caller), headers=_FRESH)

    @api.get("/v1/audit", responses=refusals())
    async def audit(caller: Who, before: Annotated[int | None, Query(ge=1, le=2**53)] = None) -> JSONResponse:
        """What operators did, the newest first."""
        return _list("entries", await registry.database.read(orgs.audit_log, caller, None, before))


def _add_tokens(api: APIRouter, registry: Registry) -> None:
    @api.get("/v1/tokens", responses=refusals())
    async def tokens(caller: Who) -> JSONResponse:
        """Your tokens; what they are is shown once, when they are made."""
        return _list("tokens", await registry.database.read(accounts.list_tokens, caller))

    @api.post("/v1/tokens", status_code=201, responses=refusals(404))
    async def make_token(body: NewToken, caller: Who) -> JSONResponse:
        """A token of your own, for less than you may do yourself."""
        made = await registry.rule(accounts.make_token, caller, body.label, body.scopes, body.org, body.hours)
        return _made(made)

    @api.delete("/v1/tokens/{token}", status_code=204, responses=refusals(404))
    async def revoke_token(token: Id, caller: Who) -> Response:
        """End a token, at once."""
        await registry.rule(accounts.revoke_token, caller, token)
        return Response(status_code=204)


def _add_orgs(api: APIRouter, registry: Registry) -> None:
    @api.post("/v1/orgs", status_code=201, responses=refusals(409))
    async def make_org(body: NewOrg, caller: Who) -> JSONResponse:
        """Make an organisation, and be its first owner; for operators."""
        return _made(await registry.rule(orgs.make_org, caller, body.name, body.visibility))

    @api.get("/v1/orgs/{org}", responses=refusals(404))
    async def org(org: Label, caller: Who) -> JSONResponse:
        """An organisation: its limits, and what it uses of them."""
        return JSONResponse(await registry.database.read(orgs.describe_org, caller, org), headers=_FRESH)

    @api.patch("/v1/orgs/{org}", responses=refusals(404))
    async def change_org(org: Label, body: OrgChange, caller: Who) -> JSONResponse:
        """Change what new skills are visible to, protected aliases (owners), or quotas (operators)."""
        given = body.model_dump(exclude_unset=True)
        given = {k: v for k, v in given.items() if v is not None or k.startswith("quota_")}
        return JSONResponse(await registry.rule(orgs.change_org, caller, org, given), headers=_FRESH)

    @api.get("/v1/orgs/{org}/audit", responses=refusals(404))
    async def audit(
        org: Label, caller: Who, before: Annotated[int | None, Query(ge=1, le=2**53)] = None
    ) -> JSONResponse:
        """Who did what in an organisation, the newest first."""
        return _list("entries", await registry.database.read(orgs.audit_log, caller, org, before))


def _add_members(api: APIRouter, registry: Registry) -> None:
    @api.get("/v1/orgs/{org}/members", responses=refusals(404))
    async def members(org: Label, caller: Who) -> JSONResponse:
        """People and their roles."""
        return _list("members", await registry.database.read(orgs.list_members, caller, org))

    @api.put("/v1/orgs/{org}/members/{account}", status_code=204, responses=refusals(404, 409))
    async def set_member(org: Label, account: Account, body: NewRole, caller: Who) -> Response:
        """Change a member's role."""
        await registry.rule(orgs.set_member, caller, org, account, body.role)
        return Response(status_code=204)

    @api.delete("/v1/orgs/{org}/members/{account}", status_code=204, responses=refusals(404, 409))
    async def remove_member(org: Label, account: Account, caller: Who) -> Response:
        """Take a member out, or leave."""
        await registry.rule(orgs.remove_member, caller, org, account)
        return Response(status_code=204)

    @api.get("/v1/orgs/{org}/invitations", responses=refusals(404))
    async def invitations(org: Label, caller: Who) -> JSONResponse:
        """Invitations, used ones too."""
        return _list("invitations", await registry.database.read(orgs.list_invitations, caller, org))

    @api.post("/v1/orgs/{org}/invitations", status_code=201, responses=refusals(404))
    async def invite(org: Label, body: Invite, caller: Who) -> JSONResponse:
        """A code that makes its bearer a member, once. It is shown now and never again."""
        return _made(await registry.rule(orgs.invite, caller, org, body.role, body.hours))

    @api.delete("/v1/orgs/{org}/invitations/{invitation}", status_code=204, responses=refusals(404))
    async def withdraw(org: Label, invitation: Id, caller: Who) -> Response:
        """End an invitation that was not used."""
        await registry.rule(orgs.withdraw, caller, org, invitation)
        return Response(status_code=204)


def _add_robots(api: APIRouter, registry: Registry) -> None:
    @api.post("/v1/orgs/{org}/robots", status_code=201, responses=refusals(404, 409))
    async def add_robot(org: Label, body: NewRobot, caller: Who) -> JSONResponse:
        """A robot's account, with its token, which is shown now and never again."""
        made = await registry.rule(robots.add_robot, caller, org, body.name, body.scopes, body.hours)
        return _made(made)

    @api.post("/v1/orgs/{org}/robots/{robot}/tokens", status_code=201, responses=refusals(404))
    async def robot_token(org: Label, robot: Label, body: RobotToken, caller: Who) -> JSONResponse:
        """Another token for a robot; the ones before end."""
        made = await registry.rule(robots.new_robot_token, caller, org, robot, body.scopes, body.hours)
        return _made(made)

    @api.delete("/v1/orgs/{org}/robots/{robot}", status_code=204, responses=refusals(404))
    async def remove_robot(org: Label, robot: Label, caller: Who) -> Response:
        """End a robot's account."""
        await registry.rule(robots.remove_robot, caller, org, robot)
        return Response(status_code=204)


def _add_keys(api: APIRouter, registry: Registry) -> None:
    @api.get("/v1/orgs/{org}/keys", responses=refusals(404))
    async def keys(org: Label, caller: Who) -> JSONResponse:
        """Publisher keys, with those that sign no more."""
        return _list("keys", await registry.database.read(orgs.list_keys, caller, org))

    @api.post("/v1/orgs/{org}/keys", status_code=201, responses=refusals(404))
    async def add_key(org: Label, body: NewKey, caller: Who) -> JSONResponse:
        """Let a key sign for the organisation."""
        return _made(await registry.rule(orgs.add_key, caller, org, body.public_key))

    @api.delete("/v1/orgs/{org}/keys/{fingerprint}", status_code=204, responses=refusals(404))
    async def remove_key(org: Label, fingerprint: Fingerprint, caller: Who) -> Response:
        """Let a key sign nothing more."""
        await registry.rule(orgs.remove_key, caller, org, fingerprint)
        return Response(status_code=204)


def _made(answer: dict[str, Any], status: int = 201) -> JSONResponse:
    return JSONResponse(answer, status, headers=_FRESH)


def _list(name: str, rows: list[dict[str, Any]]) -> JSONResponse:
    return JSONResponse({name: rows}, headers=_FRESH)
