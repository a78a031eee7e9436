"""Request bodies, bounded in size, in their number of values and in the time that they may stay silent."""

from __future__ import annotations

import asyncio
import re
import time

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from neuraverse.registry.config import Settings
from neuraverse.registry.limits import (
    MAX_BEGIN_BYTES,
    MAX_BODY_BYTES,
    MAX_DIGESTS_BYTES,
    MAX_PARCEL_BYTES,
    MAX_PUBLISH_BYTES,
    MIB,
)
from neuraverse.registry.problems import Problem

PARCEL = "application/x-tar"
_LIMITS = {
    "/v1/skills": MAX_PUBLISH_BYTES,
    "/v1/blobs/missing": MAX_DIGESTS_BYTES,
    "/v1/uploads": MAX_BEGIN_BYTES,
}
_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
"""A text in JSON, or one that does not end: so each quote begins a match, and the time is linear."""
_MAX_TEXTS, _MAX_BESIDE = 16, 1000


class TooLarge(HTTPException):
    """A body beyond its limit, whatever its Content-Length said."""

    def __init__(self, limit: int) -> None:
        size = f"{limit} bytes" if limit % MIB else f"{limit // MIB} MiB"
        super().__init__(413, f"the body is larger than the limit of {size}")


class BodyLimit:
    """Middleware that ends a body which is too large or too slow, before it takes memory or a place.

    Args:
        app: The application.
        settings: How large a blob may be, and how slow a body.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    def _limit(self, request: Request) -> int:
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        if request.method in ("PUT", "PATCH") and path.startswith(("/v1/blobs/", "/v1/uploads/")):
            return self._settings.max_blob_bytes
        if path == "/v1/skills" and request.headers.get("content-type") == PARCEL:
            return MAX_PARCEL_BYTES
        return _LIMITS.get(path, MAX_BODY_BYTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        limit = self._limit(request)
        claimed = request.headers.get("content-length", "0")
        if not claimed.isdigit() or int(claimed) > limit:
            await _refuse(TooLarge(limit), scope, receive, send)
            return
        await self._app(scope, _bounded(receive, limit, self._settings), send)


def few_texts(body: bytes) -> bool:
    """Whether a JSON document is a few texts and hardly anything beside them, told without parsing it.

    A parser makes a hundred bytes of each value, and the validator more of each that it did not expect, so
    that its size alone is no bound for a document in which large texts are expected.
    """
    return sum(map(len, _TEXT.split(body, maxsplit=_MAX_TEXTS))) <= _MAX_BESIDE


async def _refuse(error: HTTPException, scope: Scope, receive: Receive, send: Send) -> None:
    problem = Problem(error.status_code, "too-large", error.detail, headers={"Connection": "close"})
    await problem.response()(scope, receive, send)


def _bounded(receive: Receive, limit: int, settings: Settings) -> Receive:
    idle_s = settings.body_idle_s
    size = 0
    waited_s = 0.0  # for the client alone; what the server takes to store a part does not count
    whole = False

    async def bounded() -> Message:
        nonlocal size, waited_s, whole
        if whole:  # what follows is only the news that the client has gone
            return await receive()
        begun = time.monotonic()
        try:
            async with asyncio.timeout(min(idle_s, idle_s + size / settings.body_bytes_per_s - waited_s)):
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
