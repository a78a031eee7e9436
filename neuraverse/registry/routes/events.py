"""The event feed, by polling and as Server-Sent Events."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, StreamingResponse

from neuraverse.registry import index
from neuraverse.registry.feed import Event, sse, wait
from neuraverse.registry.limits import MAX_EVENTS, MAX_WAIT_S
from neuraverse.registry.routes.fields import Cursor, refusals
from neuraverse.registry.service import Registry


def router(registry: Registry) -> APIRouter:
    """The routes."""
    api, feed = APIRouter(tags=["events"]), registry.feed

    async def read(after: int, limit: int = MAX_EVENTS) -> list[Event]:
        return await registry.database.read(index.events_behind, after, limit)

    async def start(after: int | None) -> tuple[int, bool]:
        """The cursor to read from, and whether the given one is not of this registry's past."""
        head = await registry.database.read(index.head)
        if after is None:
            return head, False
        return (head, True) if after > head else (after, False)

    @api.get("/v1/events", responses=refusals())
    async def poll(
        after: Cursor = None,
        limit: Annotated[int, Query(ge=1, le=MAX_EVENTS)] = 100,
        seconds: Annotated[float, Query(alias="wait", ge=0.0, le=MAX_WAIT_S)] = 0.0,
    ) -> JSONResponse:
        """Events behind `after`, in order, waiting for the first if asked; without it, the cursor of now.

        `reset` is true if the cursor lies ahead of this registry, which then is another or a restored one.
        """
        ticket = feed.ticket()
        cursor, reset = await start(after)
        found = await read(cursor, limit)
        if not found and not reset and after is not None and seconds and not feed.closed:
            await wait(ticket, seconds)
            found = await read(cursor, limit)
        answer: dict[str, Any] = {
            "events": found,
            "next": found[-1]["id"] if found else cursor,
            "reset": reset,
        }
        return JSONResponse(answer, headers={"Cache-Control": "no-store"})

    @api.get(
        "/v1/events/stream",
        response_class=StreamingResponse,
        responses={
            200: {"description": "Events for ever.", "content": {"text/event-stream": {}}},
            **refusals(),
        },
    )
    async def stream(request: Request, after: Cursor = None) -> StreamingResponse:
        """The same as Server-Sent Events; `Last-Event-ID` counts more than `after`."""
        last = request.headers.get("last-event-id", "")
        if last.isdecimal() and last.isascii() and len(last) <= 15:
            after = int(last)
        cursor, reset = await start(after)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        body = sse(feed, read, cursor, reset=reset)
        return StreamingResponse(body, media_type="text/event-stream", headers=headers)

    return api
