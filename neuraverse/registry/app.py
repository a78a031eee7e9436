"""The HTTP API, version 1, and a page for people. Routes only translate; `service` and `index` decide."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi import Path as InPath
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

import neuraverse
from neuraverse.keys import MAX_KEY_BYTES
from neuraverse.manifest import MAX_MANIFEST_BYTES, VERSION_PATTERN
from neuraverse.registry import problems
from neuraverse.registry.bodies import BodyLimit
from neuraverse.registry.feed import sse, wait
from neuraverse.registry.files import file_response, immutable_headers, not_modified
from neuraverse.registry.index import LATEST
from neuraverse.registry.limits import (
    MAX_BLOB_BYTES,
    MAX_EVENTS,
    MAX_PAGE,
    MAX_QUERY_CHARACTERS,
    MAX_WAIT_S,
)
from neuraverse.registry.page import page
from neuraverse.registry.problems import Problem
from neuraverse.registry.service import Registry
from neuraverse.skill import MAX_SIGNATURE_BYTES

_LABEL = "[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?"
Label = Annotated[str, InPath(pattern=f"^{_LABEL}$", examples=["acme"])]
Hex = Annotated[str, InPath(pattern="^[0-9a-f]{64}$", description="SHA-256 in lower-case hexadecimal")]
Alias = Annotated[str, InPath(pattern="^[a-z][a-z0-9-]{0,63}$", examples=["stable"])]
VersionOrAlias = Annotated[
    str, InPath(max_length=64, pattern=r"^[0-9A-Za-z.-]+$", examples=["1.0.0", "stable"])
]
Cursor = Annotated[int | None, Query(ge=0, le=2**53, description="the id of the last event that was seen")]


class Publish(BaseModel):
    """A signed manifest. The blobs that it lists have been uploaded before."""

    model_config = ConfigDict(extra="forbid")

    manifest: str = Field(max_length=MAX_MANIFEST_BYTES, description="exact text of manifest.json")
    signature: str = Field(max_length=MAX_SIGNATURE_BYTES, description="exact text of signature.json")
    public_key: str = Field(max_length=MAX_KEY_BYTES, description="PEM of the key that signed")


class SetAlias(BaseModel):
    """Which version an alias points at."""

    model_config = ConfigDict(extra="forbid")

    version: str = Field(pattern=VERSION_PATTERN, max_length=64, examples=["1.0.0"])


def create_app(data_dir: Path | str) -> FastAPI:
    """The registry as an ASGI application.

    Args:
        data_dir: Folder that holds the registry; it must exist, and no other process may use it.
    """
    registry = Registry(Path(data_dir))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await registry.open()
        yield
        await registry.close()

    app = FastAPI(
        title="neuraverse registry",
        version=neuraverse.__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # these pages load scripts from elsewhere; /openapi.json says the same
        redoc_url=None,
    )
    app.state.registry = registry
    app.add_middleware(BodyLimit, prefix="/v1/blobs/", prefix_bytes=MAX_BLOB_BYTES)
    problems.install(app)
    _add_blobs(app, registry)
    _add_skills(app, registry)
    _add_documents(app, registry)
    _add_events(app, registry)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the registry answers."""
        await registry.index.head()
        return {"status": "ok", "version": neuraverse.__version__}

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def home(request: Request, q: str = "", cursor: str = "") -> HTMLResponse:
        found, following = await registry.index.search(q[:MAX_QUERY_CHARACTERS], cursor, MAX_PAGE)
        headers = {
            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'"
        }
        return HTMLResponse(page(found, following, q, str(request.base_url).rstrip("/")), headers=headers)

    return app


def _add_blobs(app: FastAPI, registry: Registry) -> None:
    @app.put("/v1/blobs/{digest}", status_code=201)
    async def put_blob(digest: Hex, request: Request) -> JSONResponse:
        """Upload bytes under their SHA-256. 201: stored; 200: they were there."""
        created = await registry.blobs.put(digest, request.stream())
        return JSONResponse({"sha256": digest, "created": created}, 201 if created else 200)

    @app.head("/v1/blobs/{digest}", response_class=Response)
    @app.get("/v1/blobs/{digest}", response_class=Response)
    async def get_blob(digest: Hex, request: Request) -> Response:
        """Bytes by their SHA-256; ranges and conditional requests are answered."""
        size = registry.blobs.size(digest)
        if size is None:
            raise Problem(404, "no-such-blob", f"there is no blob {digest}")
        return file_response(request, registry.blobs.path(digest), digest, size)


def _add_skills(app: FastAPI, registry: Registry) -> None:
    fresh = {"Cache-Control": "no-cache"}

    @app.post("/v1/skills", status_code=201)
    async def publish(body: Publish) -> JSONResponse:
        """Publish a signed manifest. 201: published; 200: the same bytes were published before."""
        new, created = await registry.publish(
            body.manifest.encode(), body.signature.encode(), body.public_key.encode()
        )
        name, version = new.manifest.name, new.manifest.version
        answer = {
            "name": name,
            "version": version,
            "digest": new.digest,
            "url": f"/v1/skills/{name}/{version}",
        }
        return JSONResponse(answer, 201 if created else 200, {"Location": answer["url"]})

    @app.get("/v1/skills")
    async def search(
        q: Annotated[str, Query(max_length=MAX_QUERY_CHARACTERS)] = "",
        cursor: Annotated[str, Query(max_length=129, pattern=f"^({_LABEL}/{_LABEL})?$")] = "",
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
    ) -> JSONResponse:
        """Skills by name, each with its latest version; `q` are words that must all occur."""
        found, following = await registry.index.search(q, cursor, limit)
        return JSONResponse({"skills": found, "next": following}, headers=fresh)

    @app.get("/v1/skills/{org}/{name}")
    async def describe(org: Label, name: Label) -> JSONResponse:
        """Versions, the latest first, and aliases."""
        return JSONResponse(await registry.index.describe(f"{org}/{name}"), headers=fresh)

    @app.get("/v1/skills/{org}/{name}/{version}")
    async def resolve(org: Label, name: Label, version: VersionOrAlias) -> JSONResponse:
        """The digest behind a version, an alias or `latest`, with its lineage."""
        return JSONResponse(await registry.index.find(f"{org}/{name}", version), headers=fresh)

    @app.put("/v1/skills/{org}/{name}/aliases/{alias}")
    async def set_alias(org: Label, name: Label, alias: Alias, body: SetAlias) -> JSONResponse:
        """Point an alias at a version that exists."""
        if alias == LATEST:
            raise Problem(
                409, "reserved", "'latest' is derived from the versions", remedy="choose another alias"
            )
        await registry.set_alias(f"{org}/{name}", alias, body.version)
        return JSONResponse({"name": f"{org}/{name}", "alias": alias, "version": body.version})


def _add_documents(app: FastAPI, registry: Registry) -> None:
    async def document(request: Request, digest: str, kind: str) -> Response:
        data = await registry.index.document(f"sha256:{digest}", kind)
        # One manifest may have been signed twice, so the tag of a signature says more than the digest.
        tag = digest if kind == "manifest" else f"{digest}-{kind}"
        if not_modified(request, tag):
            return Response(status_code=304, headers=immutable_headers(tag))
        return Response(data, media_type="application/json", headers=immutable_headers(tag))

    @app.get("/v1/manifests/{digest}", response_class=Response)
    async def manifest(digest: Hex, request: Request) -> Response:
        """The exact bytes of a manifest."""
        return await document(request, digest, "manifest")

    @app.get("/v1/manifests/{digest}/signature", response_class=Response)
    async def signature(digest: Hex, request: Request) -> Response:
        """The exact bytes of its signature."""
        return await document(request, digest, "signature")

    @app.get("/v1/orgs/{org}/key", response_class=Response)
    async def key(org: Label) -> Response:
        """The public keys that an organisation publishes with, as PEM."""
        text = "".join(await registry.index.keys(org))
        return Response(text, media_type="application/x-pem-file", headers={"Cache-Control": "no-cache"})


def _add_events(app: FastAPI, registry: Registry) -> None:
    feed, index = registry.feed, registry.index

    async def start(after: int | None) -> tuple[int, bool]:
        """The cursor to read from, and whether the given one is not of this registry's past."""
        head = await index.head()
        if after is None:
            return head, False
        return (head, True) if after > head else (after, False)

    @app.get("/v1/events")
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
        found = await index.events(cursor, limit)
        if not found and not reset and after is not None and seconds and not feed.closed:
            await wait(ticket, seconds)
            found = await index.events(cursor, limit)
        answer: dict[str, Any] = {
            "events": found,
            "next": found[-1]["id"] if found else cursor,
            "reset": reset,
        }
        return JSONResponse(answer, headers={"Cache-Control": "no-store"})

    @app.get("/v1/events/stream", response_class=StreamingResponse)
    async def stream(request: Request, after: Cursor = None) -> StreamingResponse:
        """The same as Server-Sent Events; `Last-Event-ID` counts more than `after`."""
        last = request.headers.get("last-event-id", "")
        if last.isdecimal() and len(last) <= 16:
            after = int(last)
        cursor, reset = await start(after)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        body = sse(feed, lambda seen: index.events(seen, MAX_EVENTS), cursor, reset=reset)
        return StreamingResponse(body, media_type="text/event-stream", headers=headers)
