"""Finding: skills by words and facets, and those that a robot can run."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from neuraverse.interface import Offer, Signal
from neuraverse.manifest import Line
from neuraverse.registry.finding import searches
from neuraverse.registry.finding.searches import Asked
from neuraverse.registry.limits import MAX_OFFERED, MAX_PAGE, MAX_QUERY_CHARACTERS, MAX_TAGS
from neuraverse.registry.routes.fields import LABEL, refusals
from neuraverse.registry.service import Registry
from neuraverse.registry.tenants.identify import Who

_DIGEST = "^(sha256:[0-9a-f]{64})?$"
_FRESH = {"Cache-Control": "no-cache"}
_Figure = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
_Signals = Annotated[tuple[Signal, ...], Field(max_length=MAX_OFFERED)]


class Offered(BaseModel):
    """What one robot in its cell can supply: an `Offer`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "robot": "ur5e",
                    "max_rate_hz": 500.0,
                    "reach_m": 0.85,
                    "linear_speed_m_s": 1.0,
                    "angular_speed_rad_s": 3.1,
                    "observation": [{"name": "e_pos", "shape": [3], "unit": "m", "frame": "W"}],
                    "action": [{"name": "twist", "shape": [3], "unit": "m/s", "frame": "W"}],
                }
            ]
        },
    )

    robot: Line
    max_rate_hz: _Figure
    reach_m: _Figure
    linear_speed_m_s: _Figure
    angular_speed_rad_s: _Figure
    wrench_sensor: bool = False
    grip_stroke_m: _Figure = 0.0
    observation: _Signals = ()
    action: _Signals = ()


def _asked(
    q: Annotated[
        str,
        Query(
            max_length=MAX_QUERY_CHARACTERS,
            description="words that must all occur in name, title, description, tags, robot or task",
            examples=["weld seam"],
        ),
    ] = "",
    task: Annotated[str, Query(max_length=300, description="environment id")] = "",
    interface: Annotated[str, Query(pattern=_DIGEST, description="digest of the interface")] = "",
    robot: Annotated[str, Query(max_length=300, description="body that it was trained on")] = "",
    tag: Annotated[
        list[Annotated[str, Field(max_length=100)]],
        Query(max_length=MAX_TAGS, description="all of which it must have"),
    ] = [],  # noqa: B006 - FastAPI makes a copy of it
    license: Annotated[str, Query(max_length=300, description="SPDX expression")] = "",
    org: Annotated[str, Query(pattern=f"^({LABEL})?$", description="organisation", examples=["acme"])] = "",
    parent: Annotated[str, Query(pattern=_DIGEST, description="a skill that it descends from directly")] = "",
    success: Annotated[
        float, Query(ge=0.0, le=1.0, allow_inf_nan=False, description="least bound of its success")
    ] = 0.0,
) -> Asked:
    return Asked(
        q=q,
        task=task,
        interface=interface,
        robot=robot,
        tags=tuple(tag),
        license=license,
        org=org,
        parent=parent,
        success=success,
    )


Wanted = Annotated[Asked, Depends(_asked)]
Cursor = Annotated[str, Query(pattern=searches.CURSOR_PATTERN, description="`next` of the page before")]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]


def router(registry: Registry) -> APIRouter:
    """The routes."""
    api = APIRouter(tags=["skills"])

    @api.get("/v1/skills", responses=refusals())
    async def search(
        caller: Who,
        asked: Wanted,
        cursor: Cursor = "",
        limit: Limit = 50,
        facets: Annotated[bool, Query(description="count the values of facets, too")] = False,
    ) -> JSONResponse:
        """Skills with all words and facets, the best proven first, each with its latest version.

        What counts is `evidence`: the 95 % lower bound of success in simulation, or in the field from 100
        reported episodes on. `facets` counts values among the 1,000 best; `cut` tells whether there are more.
        """
        answer = await registry.database.read(
            searches.search, caller, registry.rankings, asked, cursor, limit, facets=facets
        )
        return JSONResponse(answer, headers=_FRESH)

    @api.post("/v1/skills/runnable", responses=refusals())
    async def runnable(
        caller: Who, offered: Offered, asked: Wanted, cursor: Cursor = "", limit: Limit = 50
    ) -> JSONResponse:
        """Of those skills, the ones that a robot can run with what it offers."""
        offer = Offer(**{name: getattr(offered, name) for name in Offered.model_fields})
        answer: dict[str, Any] = await registry.database.read(
            searches.runnable, caller, registry.rankings, registry.fitting, offer, asked, cursor, limit
        )
        return JSONResponse(answer, headers=_FRESH)

    return api
