"""Blobs by their digest, and resumable uploads."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi import Path as InPath
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from neuraverse.manifest import MAX_FILE_BYTES
from neuraverse.registry.files import blob_response
from neuraverse.registry.limits import MAX_DIGESTS
from neuraverse.registry.routes.fields import LABEL, Hex, refusals
from neuraverse.registry.service import Registry
from neuraverse.registry.tenants.identify import Who

UploadId = Annotated[str, InPath(pattern="^[0-9a-f]{32}$", examples=["0f" * 16])]
Offset = Annotated[int, Header(alias="Upload-Offset", ge=0, le=MAX_FILE_BYTES, examples=[0])]
For = Annotated[
    str,
    Query(
        pattern=f"^({LABEL})?$",
        description="the organisation that uploads; only an open registry needs none",
        examples=["acme"],
    ),
]
_Digest = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
_BINARY = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {}}}}}


class Digests(BaseModel):
    """SHA-256 digests in lower-case hexadecimal."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"sha256": ["ab" * 32]}]})

    sha256: Annotated[list[_Digest], Field(max_length=MAX_DIGESTS)]


class Missing(BaseModel):
    """Those that have to be uploaded."""

    missing: list[str]


class Begin(BaseModel):
    """What is going to be uploaded."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"sha256": "ab" * 32, "size": 5}]}
    )

    sha256: _Digest
    size: Annotated[int, Field(ge=0, le=2**53)]


def router(registry: Registry) -> APIRouter:
    """The routes."""
    api, vault = APIRouter(tags=["blobs"]), registry.vault

    @api.post("/v1/blobs/missing", responses=refusals())
    async def missing(body: Digests, caller: Who, org: For = "") -> Missing:
        """Which blobs are not here. Those that are stay for a while, so that they can be published."""
        return Missing(missing=await vault.missing(caller, org, body.sha256))

    @api.put(
        "/v1/blobs/{digest}",
        status_code=201,
        responses={200: {"description": "It was here."}, **refusals()},
        openapi_extra=_BINARY,
    )
    async def put_blob(digest: Hex, request: Request, caller: Who, org: For = "") -> JSONResponse:
        """Upload bytes under their SHA-256. 201: stored; 200: they were here."""
        created = await vault.put(caller, org, digest, request.stream())
        return JSONResponse({"sha256": digest, "created": created}, 201 if created else 200)

    @api.head("/v1/blobs/{digest}", response_class=Response, responses=refusals(404, 410, 416))
    @api.get(
        "/v1/blobs/{digest}",
        response_class=Response,
        responses={
            200: {"description": "The bytes.", "content": {"application/octet-stream": {}}},
            206: {"description": "A range of them.", "content": {"application/octet-stream": {}}},
            304: {"description": "You have them."},
            307: {"description": "They are in an object store, there."},
            **refusals(404, 410, 416),
        },
    )
    async def get_blob(digest: Hex, request: Request, caller: Who) -> Response:
        """Bytes by their SHA-256; ranges and conditional requests are answered."""
        blob, everybody = await vault.find(caller, digest)
        return await blob_response(request, blob, vault, registry.settings, everybody=everybody)

    @api.post(
        "/v1/uploads",
        status_code=201,
        responses={200: {"description": "The blob is here."}, **refusals()},
    )
    async def begin(body: Begin, caller: Who, org: For = "") -> JSONResponse:
        """Start an upload that can be resumed. 200: there is nothing to upload."""
        found = await vault.begin(caller, org, body.sha256, body.size)
        if "exists" in found:
            return JSONResponse(found)
        headers = {"Location": f"/v1/uploads/{found['id']}", "Upload-Offset": "0"}
        return JSONResponse(found, 201, headers)

    @api.head("/v1/uploads/{upload}", response_class=Response, responses=refusals(404))
    @api.get("/v1/uploads/{upload}", responses=refusals(404))
    async def progress(upload: UploadId, caller: Who) -> JSONResponse:
        """Where an upload stands."""
        found = await vault.progress(caller, upload)
        return JSONResponse(
            found, headers={"Cache-Control": "no-store", "Upload-Offset": str(found["offset"])}
        )

    @api.patch("/v1/uploads/{upload}", responses=refusals(404, 409), openapi_extra=_BINARY)
    async def append(upload: UploadId, offset: Offset, request: Request, caller: Who) -> JSONResponse:
        """Send bytes from an offset on. When the connection is cut, what came is kept."""
        length = request.headers.get("content-length")
        reached = await vault.append(
            caller, upload, offset, request.stream(), int(length) if length else None
        )
        return JSONResponse({"offset": reached}, headers={"Upload-Offset": str(reached)})

    @api.put(
        "/v1/uploads/{upload}",
        status_code=201,
        responses={200: {"description": "It was here."}, **refusals(404, 409)},
    )
    async def finish(upload: UploadId, caller: Who) -> JSONResponse:
        """All bytes are sent: check them and make them a blob. Asking again is answered again."""
        digest, created = await vault.finish(caller, upload)
        return JSONResponse({"sha256": digest, "created": created}, 201 if created else 200)

    @api.delete("/v1/uploads/{upload}", status_code=204, responses=refusals(404))
    async def abandon(upload: UploadId, caller: Who) -> Response:
        """Forget an upload."""
        await vault.progress(caller, upload)
        await vault.abandon(upload)
        return Response(status_code=204)

    return api
