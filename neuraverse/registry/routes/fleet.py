"""Robots: what they run, how that does in the field, what they are pinned at, and roll-outs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Response
from fastapi import Path as InPath
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from neuraverse.interface import UNITS
from neuraverse.manifest import DIGEST_PATTERN
from neuraverse.registry.fleet import installs, reports, rollouts
from neuraverse.registry.limits import (
    MAX_ERRORS,
    MAX_MEASURED,
    MAX_PAGE,
    MAX_REPORT_EPISODES,
    MAX_SAID,
    MAX_SOFTWARE,
    MAX_STAGE_EPISODES,
    MAX_STAGES,
)
from neuraverse.registry.problems import Problem
from neuraverse.registry.routes.fields import LABEL, Label, Version, refusals
from neuraverse.registry.service import Registry
from neuraverse.registry.tenants.identify import Who

_FRESH = {"Cache-Control": "no-store"}
_FOLLOWS = f"^{LABEL}/{LABEL}(@[0-9A-Za-z.,<>=^~*+ -]{{1,128}})?$"
_Follows = Annotated[str, StringConstraints(max_length=200, pattern=_FOLLOWS)]
_Key = Annotated[
    str,
    Header(
        alias="Idempotency-Key",
        pattern="^[0-9A-Za-z_-]{0,64}$",
        description="what the sender calls this report: a new random text for each",
        examples=["5f0c6b7e"],
    ),
]
_Digest = Annotated[str, StringConstraints(pattern=DIGEST_PATTERN)]
_Count = Annotated[int, Field(ge=0, le=MAX_REPORT_EPISODES, strict=True)]
_Measured = Annotated[float, Field(ge=0, le=MAX_MEASURED, allow_inf_nan=False, strict=True)]
_Share = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False, strict=True)]
_Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,63}$")]
_Software = Annotated[str, StringConstraints(pattern="^[ -~]{1,64}$")]
_Unit = Annotated[str, Field(json_schema_extra={"enum": sorted(UNITS)})]
RolloutId = Annotated[str, InPath(pattern="^[0-9a-f]{16}$", examples=["0f" * 8])]
SkillOrg = Annotated[str, InPath(pattern=f"^{LABEL}$", examples=["acme"])]
Skill = Annotated[str, InPath(pattern=f"^{LABEL}$", examples=["weld-seam"])]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Install(_Body):
    """What a robot says of a reference that it follows, and of a version that it runs, refuses or leaves."""

    follows: _Follows
    version: Version | None = None
    digest: _Digest | None = None
    state: Literal["running", "refused", "rolled-back", "left", "stopped"]
    reason: Annotated[str, StringConstraints(max_length=MAX_SAID)] = ""


class Pin(_Body):
    """What to keep a robot at; null is what it runs."""

    version: Version | None = None
    reason: Annotated[str, StringConstraints(max_length=MAX_SAID)] = ""


class Rollout(_Body):
    """How a version shall go to a fleet."""

    follows: _Follows
    version: Version
    stages: Annotated[list[_Share], Field(min_length=1, max_length=MAX_STAGES)] = [5.0, 25.0, 100.0]
    episodes: Annotated[int, Field(ge=0, le=MAX_STAGE_EPISODES, strict=True)] = 50
    threshold: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)] | None = None

    def plan(self) -> rollouts.Plan:
        """The same for the registry.

        Raises:
            Problem: 422 the shares do not grow.
        """
        for at, (share, larger) in enumerate(zip(self.stages, self.stages[1:], strict=False)):
            if larger <= share:
                raise Problem(
                    422,
                    "invalid",
                    f"body field 'stages.{at + 1}': {larger:g} % does not follow {share:g} %",
                    remedy="let each share be larger than the one before",
                    field=f"stages.{at + 1}",
                )
        return rollouts.Plan(
            follows=self.follows,
            version=self.version,
            stages=self.stages,
            episodes=self.episodes,
            threshold=self.threshold,
        )


class Step(_Body):
    """The next step of a roll-out."""

    to: Literal["next", "back", "hold", "resume", "end"]


class Error(_Body):
    """A physical error over some episodes: its magnitude."""

    unit: _Unit
    n: Annotated[int, Field(ge=1, le=int(MAX_MEASURED), strict=True)]
    mean: _Measured
    max: _Measured


class FieldReport(_Body):
    """What a robot saw of a version since its last report; sums, and nothing raw."""

    digest: _Digest
    episodes: Annotated[int, Field(ge=1, le=MAX_REPORT_EPISODES, strict=True)]
    successes: _Count
    aborts: _Count = 0
    errors: Annotated[dict[_Word, Error], Field(max_length=MAX_ERRORS)] = {}
    body: _Digest
    software: Annotated[dict[_Word, _Software], Field(max_length=MAX_SOFTWARE)] = {}

    def report(self, key: str) -> reports.Report:
        """The same for the registry.

        Raises:
            Problem: 422 its numbers contradict each other, or a unit is none.
        """
        if self.successes + self.aborts > self.episodes:
            raise _wrong(
                "successes",
                f"{self.successes} successes and {self.aborts} aborts are more than {self.episodes} episodes",
                "count each episode once",
            )
        for name, error in self.errors.items():
            if error.unit not in UNITS:
                raise _wrong(
                    f"errors.{name}.unit", f"{error.unit!r} is no unit", f"use SI: {', '.join(sorted(UNITS))}"
                )
            if error.mean > error.max * (1.0 + 1e-9):  # a mean is rounded
                raise _wrong(
                    f"errors.{name}.mean",
                    f"the mean of {name} is more than its greatest",
                    "send the mean and the greatest of the same episodes",
                )
        errors = {k: dict(v) for k, v in self.errors.items()}
        return reports.Report(**dict(self) | {"errors": errors, "key": key})


def router(registry: Registry) -> APIRouter:
    """The routes."""
    api = APIRouter(tags=["fleet"])
    _add_robots(api, registry)
    _add_pins(api, registry)
    _add_rollouts(api, registry)
    return api


def _add_robots(api: APIRouter, registry: Registry) -> None:
    database, feed = registry.database, registry.feed

    @api.put("/v1/fleet/installs", status_code=204, responses=refusals(404, 409))
    async def say(body: Install, caller: Who) -> Response:
        """A robot says what it runs."""
        await database.write(installs.say, caller, installs.Said(**dict(body)))
        feed.wake()
        return Response(status_code=204)

    @api.delete("/v1/fleet/installs", status_code=204, responses=refusals())
    async def unsay(
        caller: Who,
        follows: Annotated[str, Query(max_length=200, pattern=_FOLLOWS, examples=["acme/weld-seam@stable"])],
    ) -> Response:
        """A robot follows a reference no more."""
        await database.write(installs.unsay, caller, follows)
        return Response(status_code=204)

    @api.post("/v1/fleet/reports", status_code=201, responses=refusals(404, 409))
    async def report(body: FieldReport, caller: Who, key: _Key = "") -> JSONResponse:
        """A robot says how a version does that it runs. The answer is how it does everywhere.

        Whoever gets no answer may send the same again, with the same key: it counts once.
        """
        answer = await database.write(reports.take, caller, body.report(key))
        feed.wake()
        return JSONResponse(answer, 201, headers=_FRESH)

    @api.get("/v1/orgs/{org}/reports", responses=refusals(404))
    async def reported(
        org: Label,
        caller: Who,
        skill: Annotated[str, Query(pattern=f"^{LABEL}/{LABEL}$", examples=["acme/weld-seam"])],
    ) -> JSONResponse:
        """What robots of an organisation reported of a skill: sums for each version, robot and body."""
        found = await database.read(reports.listed, caller, org, skill)
        return JSONResponse({"reports": found}, headers=_FRESH)

    @api.get("/v1/orgs/{org}/robots", responses=refusals(404))
    async def robots(
        org: Label,
        caller: Who,
        cursor: Annotated[str, Query(max_length=129, pattern=f"^({LABEL}/{LABEL})?$")] = "",
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
    ) -> JSONResponse:
        """Robots by name: what each follows, runs, is pinned or held at, or gets by a roll-out."""
        found, following = await database.read(installs.listed, caller, org, cursor, limit)
        return JSONResponse({"robots": found, "next": following}, headers=_FRESH)


def _add_pins(api: APIRouter, registry: Registry) -> None:
    database, feed, settings = registry.database, registry.feed, registry.settings
    path = "/v1/orgs/{org}/robots/{robot}/pins/{skill_org}/{skill}"

    @api.put(path, status_code=204, responses=refusals(404, 409, 410))
    async def pin(
        org: Label, robot: Label, skill_org: SkillOrg, skill: Skill, body: Pin, caller: Who
    ) -> Response:
        """Keep a robot at a version of a skill, or at what it runs of it."""
        name = f"{skill_org}/{skill}"
        await database.write(installs.pin, caller, settings, org, robot, name, body.version, body.reason)
        feed.wake()
        return Response(status_code=204)

    @api.delete(path, status_code=204, responses=refusals(404))
    async def unpin(org: Label, robot: Label, skill_org: SkillOrg, skill: Skill, caller: Who) -> Response:
        """Let a robot follow again."""
        await database.write(installs.unpin, caller, settings, org, robot, f"{skill_org}/{skill}")
        feed.wake()
        return Response(status_code=204)


def _add_rollouts(api: APIRouter, registry: Registry) -> None:
    database, feed, settings = registry.database, registry.feed, registry.settings

    @api.post("/v1/orgs/{org}/rollouts", status_code=201, responses=refusals(404, 409, 410))
    async def start(org: Label, body: Rollout, caller: Who) -> JSONResponse:
        """Send a version to a share of an organisation's robots first."""
        made = await database.write(rollouts.start, caller, settings, org, body.plan())
        feed.wake()
        return JSONResponse(made, 201, headers=_FRESH)

    @api.get("/v1/orgs/{org}/rollouts", responses=refusals(404))
    async def listed(org: Label, caller: Who) -> JSONResponse:
        """Roll-outs, the newest first."""
        found: list[dict[str, Any]] = await database.read(rollouts.listed, caller, org)
        return JSONResponse({"rollouts": found}, headers=_FRESH)

    @api.get("/v1/orgs/{org}/rollouts/{rollout}", responses=refusals(404))
    async def shown(org: Label, rollout: RolloutId, caller: Who) -> JSONResponse:
        """How far a roll-out is, and how the stage does."""
        return JSONResponse(await database.read(rollouts.shown, caller, org, rollout), headers=_FRESH)

    @api.post("/v1/orgs/{org}/rollouts/{rollout}/steps", responses=refusals(404, 409))
    async def step(org: Label, rollout: RolloutId, body: Step, caller: Who) -> JSONResponse:
        """Take a step by hand: on, back, hold, resume; or end it, and the reference means what it says."""
        done = await database.write(rollouts.take, caller, settings, org, rollout, body.to)
        feed.wake()
        return JSONResponse(done, headers=_FRESH)


def _wrong(field: str, detail: str, remedy: str) -> Problem:
    return Problem(422, "invalid", f"body field {field!r}: {detail}", remedy=remedy, field=field)
