"""The event feed, by polling and as Server-Sent Events."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from neuraverse.registry import events
from neuraverse.registry.events import Wanted
from neuraverse.registry.feed import EventStream, wait
from neuraverse.registry.files import not_modified
from neuraverse.registry.limits import MAX_EVENTS, MAX_WAIT_S
from neuraverse.registry.routes.fields import LABEL, Cursor, refusals
from neuraverse.registry.service import Registry
from neuraverse.registry.tenants.access import Caller
from neuraverse.registry.tenants.identify import Who

Org = Annotated[
    str, Query(pattern=f"^({LABEL})?$", description="only of this organisation", examples=["acme"])
]
Skill = Annotated[
    str,
    Query(pattern=f"^({LABEL}/{LABEL})?$", description="only of this skill", examples=["acme/weld-seam"]),
]
Face = Annotated[
    str,
    Query(
        pattern="^(sha256:[0-9a-f]{64})?$",
        description="only of versions with this interface",
        examples=["sha256:" + "ab" * 32],
    ),
]


def router(registry: Registry) -> APIRouter:
    """The routes."""
    api, feed = APIRouter(tags=["events"]), registry.feed

    async def start(caller: Caller, after: str | None) -> tuple[int, bool]:
        """The id to read from, and whether the given cursor is not one of this feed."""
        number = None if after is None else events.position(feed.mark, after)
        if number is not None:
            return number, False
        return await registry.database.read(events.newest, caller), after is not None

    @api.get("/v1/events", responses={304: {"description": "Nothing is new."}, **refusals()})
    async def poll(
        request: Request,
        caller: Who,
        after: Cursor = None,
        limit: Annotated[int, Query(ge=1, le=MAX_EVENTS)] = 100,
        seconds: Annotated[float, Query(alias="wait", ge=0.0, le=MAX_WAIT_S)] = 0.0,
        org: Org = "",
        skill: Skill = "",
        interface: Face = "",
    ) -> Response:
        """Events behind `after`, in order, waiting for the first if asked; without it, the cursor of now.

        `reset` is true if the cursor is not of this feed: the registry is another, or a restored one. The
        answer's ETag is its cursor: whoever sends it as `If-None-Match` is told 304 while nothing is new.
        """
        wanted = Wanted(org=org, name=skill, interface=interface)
        ticket = feed.ticket()
        number, reset = await start(caller, after)
        found: list[Any] = []
        if after is not None and not reset:
            found = await registry.database.read(events.behind, caller, number, limit, wanted)
            if not found and seconds and not feed.closed:
                await wait(ticket, seconds)
                caller = await registry.access.caller(request.headers.get("authorization"))
                found = await registry.database.read(events.behind, caller, number, limit, wanted)
        cursor = events.cursor(feed.mark, found[-1].id if found else number)
        headers = {"Cache-Control": "no-store", "ETag": f'"{cursor}"'}
        if not found and not reset and not_modified(request, cursor):
            return Response(status_code=304, headers=headers)
        answer = {"events": [events.plain(row, feed.mark) for row in found], "next": cursor, "reset": reset}
        return JSONResponse(answer, headers=headers)

    @api.get(
        "/v1/events/stream",
        response_class=Response,
        responses={
            200: {"description": "Events for ever.", "content": {"text/event-stream": {}}},
            **refusals(),
        },
    )
    async def stream(
        request: Request,
        caller: Who,
        after: Cursor = None,
        org: Org = "",
        skill: Skill = "",
        interface: Face = "",
    ) -> Response:
        """The same as Server-Sent Events; `Last-Event-ID` counts more than `after`."""
        given = request.headers.get("authorization")
        number, reset = await start(caller, request.headers.get("last-event-id") or after)

        wanted = Wanted(org=org, name=skill, interface=interface)
        return EventStream(feed, given, number, wanted, reset=reset)

    return api
