"""Request bodies, bounded in size and in the time that they may stay silent."""

from __future__ import annotations

import asyncio
import time

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from neuraverse.registry.limits import BODY_BYTES_PER_S, BODY_IDLE_S, MAX_JSON_BYTES, MIB
from neuraverse.registry.problems import Problem


class TooLarge(HTTPException):
    """A body beyond its limit, whatever its Content-Length said."""

    def __init__(self, limit: int) -> None:
        size = f"{limit // MIB} MiB" if limit >= MIB else f"{limit} bytes"
        super().__init__(413, f"the body is larger than the limit of {size}")


class BodyLimit:
    """Middleware that ends a body which is too large or too slow, before it takes memory or a place.

    Args:
        app: The application.
        prefix: Paths that begin so may carry `prefix_bytes`; all others, `MAX_JSON_BYTES`.
        prefix_bytes: See `prefix`.
    """

    def __init__(self, app: ASGIApp, *, prefix: str, prefix_bytes: int) -> None:
        self._app = app
        self._prefix = prefix
        self._prefix_bytes = prefix_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._prefix_bytes if scope["path"].startswith(self._prefix) else MAX_JSON_BYTES
        claimed = Request(scope).headers.get("content-length", "0")
        if not claimed.isdigit() or int(claimed) > limit:
            await _refuse(TooLarge(limit), scope, receive, send)
            return
        await self._app(scope, _bounded(receive, limit), send)


async def _refuse(error: HTTPException, scope: Scope, receive: Receive, send: Send) -> None:
    problem = Problem(error.status_code, "too-large", error.detail, headers={"Connection": "close"})
    await problem.response()(scope, receive, send)


def _bounded(receive: Receive, limit: int) -> Receive:
    size = 0
    waited_s = 0.0  # for the client alone; what the server takes to store a part does not count
    whole = False

    async def bounded() -> Message:
        nonlocal size, waited_s, whole
        if whole:  # what follows is only the news that the client has gone
            return await receive()
        begun = time.monotonic()
        try:
            async with asyncio.timeout(min(BODY_IDLE_S, BODY_IDLE_S + size / BODY_BYTES_PER_S - waited_s)):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, "the body came too slowly, or not at all") from None
        waited_s += time.monotonic() - begun
        size += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if size > limit:
            raise TooLarge(limit)
        return message

    return bounded
