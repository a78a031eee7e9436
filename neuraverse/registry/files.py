"""One immutable blob over HTTP: strong ETag, conditional requests, and a single byte range (RFC 9110)."""

from __future__ import annotations

import re

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from neuraverse.registry.config import Settings
from neuraverse.registry.problems import Problem
from neuraverse.registry.stores import Blob
from neuraverse.registry.vault import Vault

_IMMUTABLE = "max-age=31536000, immutable"
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def immutable_headers(digest: str, everybody: bool) -> dict[str, str]:
    """Caching headers of bytes that their digest names; what not everybody may see is for no shared cache."""
    cache = f"{'public' if everybody else 'private'}, {_IMMUTABLE}"
    return {"ETag": f'"{digest}"', "Cache-Control": cache, "X-Content-Type-Options": "nosniff"}


def not_modified(request: Request, digest: str) -> bool:
    """Whether the client says that it has these bytes."""
    tags = [t.strip().removeprefix("W/") for t in request.headers.get("if-none-match", "").split(",")]
    return f'"{digest}"' in tags or "*" in tags


def byte_range(request: Request, digest: str, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last, or None for the whole file.

    A malformed header, several ranges, or a stale ``If-Range`` mean the whole file, as RFC 9110 has it.

    Raises:
        Problem: 416, the range begins past the end.
    """
    match = _RANGE.fullmatch(request.headers.get("range", ""))
    if match is None or request.headers.get("if-range", f'"{digest}"') != f'"{digest}"':
        return None
    first, last = match.groups()
    if first:
        start, stop = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    elif last:
        start, stop = max(0, size - int(last)), size
    else:
        return None
    if start >= size:
        raise Problem(
            416,
            "range",
            f"the range begins at byte {start}; there are {size}",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return start, stop


async def blob_response(
    request: Request, blob: Blob, vault: Vault, settings: Settings, *, everybody: bool
) -> Response:
    """The blob, a range of it, 304, or where else it can be had.

    An nginx in front is told which file to send; a client of an object store, where to fetch it.

    Raises:
        Problem: 416.
        StorageError: The store fails.
    """
    headers = immutable_headers(blob.sha256, everybody) | {"Accept-Ranges": "bytes"}
    if not_modified(request, blob.sha256):
        return Response(status_code=304, headers=headers)
    binary = {"Content-Type": "application/octet-stream"}
    if request.method == "GET" and settings.x_accel_prefix:
        return Response(headers=headers | binary | {"X-Accel-Redirect": settings.x_accel_prefix + blob.key})
    if request.method == "GET" and settings.presign:
        url = await vault.store.url(blob.key, settings.presign_seconds)
        if url is not None:
            return Response(status_code=307, headers={"Location": url, "Cache-Control": "no-store"})
    span = byte_range(request, blob.sha256, blob.size)
    start, stop = span or (0, blob.size)
    headers |= binary | {"Content-Length": str(stop - start)}
    if span:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
    status = 206 if span else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    return StreamingResponse(vault.store.read(blob.key, start, stop), status, headers)
