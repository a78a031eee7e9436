"""The server's log: a line for each request, with an id that its answer carries. Never a header or a query.

An id that a proxy has given (`X-Request-Id`) is kept, so that its log and ours can be joined.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import secrets
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from neuraverse.registry.config import Settings
from neuraverse.registry.feed import count_pushed

log = logging.getLogger("neuraverse.registry.access")
_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
request_id: ContextVar[str] = ContextVar("request_id", default="")
_FIELDS = ("method", "path", "status", "seconds", "received", "sent", "client")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        plain = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request": request_id.get(),
        }
        plain |= {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
        if record.exc_info:
            plain["exception"] = self.formatException(record.exc_info)
        return json.dumps({name: value for name, value in plain.items() if value != ""})


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        head = f"{self.formatTime(record)} {record.levelname.lower():7}"
        tail = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        mark = f" [{request_id.get()}]" if request_id.get() else ""
        # One record is one line, whatever a client managed to put into it.
        return f"{head} {record.getMessage().encode('unicode_escape').decode()}{mark}{tail}"


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what stderr is now; a program or a test that runs a server may change it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


@contextlib.contextmanager
def to_stderr(settings: Settings) -> Iterator[None]:
    """Log to stderr as the settings say, while the block runs."""
    root = logging.getLogger("neuraverse.registry")
    before = (root.handlers[:], root.level, root.propagate)
    set_up(settings)
    try:
        yield
    finally:
        root.handlers[:], root.level, root.propagate = before


def set_up(settings: Settings) -> None:
    """Log to stderr as the settings say."""
    handler = _Stderr()
    handler.setFormatter(_Json() if settings.log_format == "json" else _Text())
    root = logging.getLogger("neuraverse.registry")
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    root.propagate = False


class Access:
    """Middleware that gives each request an id and writes its line.

    Args:
        app: The application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"x-request-id"), "")
        mine = given if _ID.fullmatch(given) else secrets.token_hex(8)
        token = request_id.set(mine)
        begun = time.perf_counter()
        status = sent = 0

        async def marked(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = mine
            sent += len(message.get("body", b""))
            await send(message)

        def pushed(count: int) -> None:
            nonlocal sent
            sent += count

        count_pushed(scope, pushed)
        try:
            await self._app(scope, receive, marked)
        finally:
            seconds = round(time.perf_counter() - begun, 4)
            path = scope["path"][:300]
            client = (scope.get("client") or ("",))[0]
            log.info(
                "%s %s %s %d bytes %.1f ms",
                scope["method"],
                path,
                status or "cut",
                sent,
                1e3 * seconds,
                extra={
                    "method": scope["method"],
                    "path": path,
                    "status": status,
                    "seconds": seconds,
                    "sent": sent,
                    "client": client,
                },
            )
            request_id.reset(token)
