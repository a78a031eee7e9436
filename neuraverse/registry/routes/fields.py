"""Parameters and answers that several routes share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Path, Query
from pydantic import BaseModel, StringConstraints

from neuraverse.manifest import VERSION_PATTERN
from neuraverse.registry.events import CURSOR_PATTERN
from neuraverse.registry.index import ALIAS_PATTERN

LABEL = "[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?"
Label = Annotated[str, Path(pattern=f"^{LABEL}$", examples=["acme"])]
Hex = Annotated[
    str, Path(pattern="^[0-9a-f]{64}$", description="SHA-256 in lower-case hexadecimal", examples=["ab" * 32])
]
Alias = Annotated[str, Path(pattern=ALIAS_PATTERN, examples=["stable"])]
Which = Annotated[
    str,
    Path(
        max_length=128,
        pattern=r"^[0-9A-Za-z.,<>=^~*+ -]+$",
        description="a version, a range such as ^1.2, an alias, or latest",
        examples=["1.0.0", "^1.2", "stable", "latest"],
    ),
]
Version = Annotated[str, StringConstraints(max_length=128, pattern=VERSION_PATTERN)]
Visibility = Literal["public", "network", "private"]
Cursor = Annotated[
    str | None,
    Query(pattern=CURSOR_PATTERN, description="where the reader stands; 0 is the beginning", examples=["0"]),
]


class ProblemDocument(BaseModel):
    """A refusal (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    remedy: str
    field: str | None = None


_MEANING = {
    400: "A name, a parameter or a header is malformed.",
    401: "Nobody signed in, or the token has ended or is none.",
    403: "The role, the token or the key does not allow it.",
    404: "There is no such thing.",
    408: "The body came too slowly.",
    409: "It contradicts what is here.",
    410: "It was revoked.",
    413: "Too large.",
    416: "The range begins past the end.",
    422: "The content is wrong.",
    429: "The organisation has reached a limit.",
    503: "The database is busy or gone; try again.",
    507: "The disk is full, read-only or failing.",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The refusals of a route for the OpenAPI document; those that any route may give are added."""
    schema = {"$ref": "#/components/schemas/ProblemDocument"}
    return {
        status: {
            "description": _MEANING[status],
            "content": {"application/problem+json": {"schema": schema}},
        }
        for status in sorted({400, 401, 403, 408, 413, 422, 429, 503, 507, *statuses})
    }
