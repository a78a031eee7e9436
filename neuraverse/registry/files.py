"""One immutable file over HTTP: strong ETag, conditional requests, and a single byte range (RFC 9110)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from neuraverse.registry.limits import MIB
from neuraverse.registry.problems import Problem

IMMUTABLE = "public, max-age=31536000, immutable"
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def immutable_headers(digest: str) -> dict[str, str]:
    """Caching headers of bytes that their digest names."""
    return {"ETag": f'"{digest}"', "Cache-Control": IMMUTABLE, "X-Content-Type-Options": "nosniff"}


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


def file_response(request: Request, path: Path, digest: str, size: int) -> Response:
    """The file, a range of it, or 304.

    Args:
        request: Whose method and headers count.
        path: The file.
        digest: Hex SHA-256 of its bytes.
        size: Its length in bytes.

    Raises:
        Problem: 416.
    """
    headers = immutable_headers(digest) | {"Accept-Ranges": "bytes"}
    if not_modified(request, digest):
        return Response(status_code=304, headers=headers)
    span = byte_range(request, digest, size)
    start, stop = span or (0, size)
    headers |= {"Content-Length": str(stop - start), "Content-Type": "application/octet-stream"}
    if span:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    status = 206 if span else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    return StreamingResponse(_read(path, start, stop), status, headers)


async def _read(path: Path, start: int, stop: int) -> AsyncIterator[bytes]:
    async with await anyio.open_file(path, "rb") as file:
        await file.seek(start)
        while start < stop:
            data = await file.read(min(MIB, stop - start))
            if not data:
                raise OSError(f"{path} is shorter than it was")
            start += len(data)
            yield data
