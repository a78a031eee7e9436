"""Who sends a request, and how many of them: the first thing that is asked, before any route."""

from __future__ import annotations

import math
import time
from typing import Annotated

from fastapi import Depends, Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from neuraverse.registry.config import Settings
from neuraverse.registry.problems import Problem
from neuraverse.registry.tenants.access import Access, Caller, forbidden

_FREE = ("/health/live", "/health/ready", "/v1/login", "/openapi.json")
"""What whoever does not sign in may ask for, whatever the settings."""
_WINDOW_S = 60.0
_MANY = 10_000


async def _who(request: Request) -> Caller:
    return request.state.caller  # type: ignore[no-any-return]


Who = Annotated[Caller, Depends(_who)]
"""Parameter of a route: who asks."""


class Throttle:
    """Lets so many requests a minute pass, as a bucket that fills up evenly."""

    def __init__(self) -> None:
        self._left: dict[int, tuple[float, float]] = {}

    def take(self, key: int, limit: int) -> tuple[int, float]:
        """One more request: how many are left after it (-1: it may not pass), and seconds until the next."""
        at = time.monotonic()
        left, since = self._left.get(key, (float(limit), at))
        left = min(float(limit), left + (at - since) * limit / _WINDOW_S)
        if left < 1.0:
            self._left[key] = (left, at)
            return -1, (1.0 - left) * _WINDOW_S / limit
        if len(self._left) >= _MANY:
            self._left.clear()
        self._left[key] = (left - 1.0, at)
        return int(left - 1.0), 0.0


class Identify:
    """Middleware that finds the caller of a request and counts it for their organisation.

    Args:
        app: The application.
        access: Knows tokens.
        settings: Whether anybody may read, and how many requests are too many.
    """

    def __init__(self, app: ASGIApp, *, access: Access, settings: Settings) -> None:
        self._app = app
        self._access = access
        self._settings = settings
        self._throttle = Throttle()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        try:
            caller = await self._caller(scope, path)
            counted = self._count(caller)
        except Problem as problem:
            await problem.response()(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        if not counted:
            await self._app(scope, receive, send)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(counted)
            await send(message)

        await self._app(scope, receive, marked)

    async def _caller(self, scope: Scope, path: str) -> Caller:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if path.startswith("/health/"):  # answered even if the database is not
            return self._access.anonymous
        caller = await self._access.caller(given[0].decode("latin-1") if given else None)
        if caller.account is None and not self._settings.anonymous and path not in _FREE:
            raise forbidden(caller, "use this registry", "read")
        return caller

    def _count(self, caller: Caller) -> dict[str, str]:
        """Headers that tell how many requests are left; none for who did not sign in."""
        if caller.account is None or not caller.orgs:
            return {}
        limit = self._settings.quota_requests if caller.requests is None else caller.requests
        if not limit:
            return {}
        left, wait_s = self._throttle.take(next(iter(caller.orgs)), limit)
        policy = {"RateLimit-Policy": f'"requests";q={limit};w={_WINDOW_S:.0f}'}
        if left < 0:
            seconds = math.ceil(wait_s)
            raise Problem(
                429,
                "quota",
                f"{next(iter(caller.orgs.values()))} has sent more than {limit} requests within a minute",
                remedy=f"try again in {seconds} s; poll less, or watch the event stream",
                headers={**policy, "RateLimit": f'"requests";r=0;t={seconds}', "Retry-After": str(seconds)},
                extra={"quota": "requests", "limit": limit},
            )
        return {**policy, "RateLimit": f'"requests";r={left};t={math.ceil(_WINDOW_S / limit)}'}
