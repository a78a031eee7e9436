"""Refusals as ``application/problem+json`` (RFC 9457): what is wrong, and what to do about it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from neuraverse.errors import ContentError, NeuraverseError, SignatureError, StorageError, UsageError
from neuraverse.manifest import PATTERN_HELP
from neuraverse.registry.limits import MAX_SHOWN

log = logging.getLogger("neuraverse.registry")
_DISK_SIGNS = ("disk is full", "readonly database", "disk I/O error")

_REMEDIES = {
    400: "see /openapi.json for what is expected",
    404: "check the address; GET /v1/skills lists what is here",
    405: "see /openapi.json for what can be done there",
    408: "send faster, or in smaller pieces through /v1/uploads",
    413: "send less at once; large files go through /v1/uploads",
    416: "ask for a range within the file",
    422: "see /openapi.json for what is expected",
}
"""What can be done about a refusal that has no advice of its own."""


class Problem(Exception):  # noqa: N818 - RFC 9457's own word
    """One refusal.

    Args:
        status: HTTP status.
        kind: Short slug that a program can tell refusals apart by.
        detail: What is wrong, naming the input.
        remedy: What the caller can do.
        headers: Extra headers of the answer.
        field: Name of the parameter or field of the body that is wrong.
        extra: More members of the document.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        remedy: str = "",
        headers: Mapping[str, str] | None = None,
        field: str = "",
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.remedy = remedy or _REMEDIES.get(status, "")
        self.headers = headers
        self.field = field
        self.extra = extra or {}

    def response(self) -> JSONResponse:
        """The answer to send."""
        body = {
            "type": f"urn:neuraverse:problem:{self.kind}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "remedy": self.remedy,
            **({"field": self.field} if self.field else {}),
            **self.extra,
        }
        return JSONResponse(body, self.status, self.headers, "application/problem+json")


def problem_of(error: NeuraverseError) -> Problem:
    """How an error of the lower rooms is told over HTTP."""
    match error:
        case SignatureError():
            status, kind = 422, "signature"
        case ContentError():
            status, kind = 422, type(error).__name__.removesuffix("Error").lower()
        case StorageError():
            log.error("%s", error)  # names folders of the server, which are nobody else's business
            return _DISK
        case UsageError():
            status, kind = 400, "usage"
        case _:
            status, kind = 400, "refused"
    return Problem(status, kind, error.message, remedy=error.remedy)


_DISK = Problem(
    507, "storage", "the registry's disk is full, read-only or failing", remedy="tell its operator"
)
_BUSY = Problem(
    503, "busy", "the registry's database is busy", remedy="try again", headers={"Retry-After": "1"}
)


def install(app: FastAPI) -> None:
    """Answer every failure of `app` with problem+json."""

    @app.exception_handler(Problem)
    async def _problem(_: Request, error: Problem) -> JSONResponse:
        return error.response()

    @app.exception_handler(NeuraverseError)
    async def _own(_: Request, error: NeuraverseError) -> JSONResponse:
        return problem_of(error).response()

    @app.exception_handler(DBAPIError)
    @app.exception_handler(PoolTimeout)
    @app.exception_handler(OSError)  # PostgreSQL is not there
    async def _database(_: Request, error: SQLAlchemyError | OSError) -> JSONResponse:
        log.error("database: %s", error)
        return (_DISK if any(sign in str(error) for sign in _DISK_SIGNS) else _BUSY).response()

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where, *path = first["loc"]
        field = (".".join(str(p) for p in path) or str(where))[:MAX_SHOWN]
        status = 400 if where in ("path", "query", "header") else 422
        what = PATTERN_HELP.get(first.get("ctx", {}).get("pattern"), first["msg"])
        return Problem(status, "invalid", f"{where} field {field!r}: {what}", field=field).response()

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        kind = "too-large" if error.status_code == 413 else "http"
        return Problem(error.status_code, kind, str(error.detail), headers=error.headers).response()

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> JSONResponse:
        log.exception("%s %s failed", request.method, request.url.path, exc_info=error)
        return Problem(
            500, "internal", "the registry failed on this request", remedy="see its log"
        ).response()
