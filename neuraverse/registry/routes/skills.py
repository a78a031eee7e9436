"""Skills: publish, resolve, fetch whole, compare, and change by signed statements."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.types import Receive, Scope, Send

from neuraverse import archive
from neuraverse.keys import MAX_KEY_BYTES
from neuraverse.manifest import BLOBS, MAX_MANIFEST_BYTES
from neuraverse.registry import changes, index
from neuraverse.registry.bodies import PARCEL, few_texts
from neuraverse.registry.compare import difference, graph
from neuraverse.registry.files import immutable_headers, not_modified
from neuraverse.registry.limits import MAX_SHOWN
from neuraverse.registry.problems import Problem
from neuraverse.registry.routes.fields import Alias, Hex, Label, Version, Visibility, Which, refusals
from neuraverse.registry.service import Registry
from neuraverse.registry.stores import Blob
from neuraverse.registry.tenants.access import Caller
from neuraverse.registry.tenants.identify import Who
from neuraverse.skill import MANIFEST, MAX_SIGNATURE_BYTES, SIGNATURE

PUBLIC_KEY = "public.pem"
_FRESH = {"Cache-Control": "no-cache"}
_MAX_HEADER = 2000  # bytes; proxies take few


class Publish(BaseModel):
    """A signed manifest. The blobs that it lists have been uploaded before."""

    model_config = ConfigDict(extra="forbid")

    manifest: str = Field(max_length=MAX_MANIFEST_BYTES, description="exact text of manifest.json")
    signature: str = Field(max_length=MAX_SIGNATURE_BYTES, description="exact text of signature.json")
    public_key: str = Field(max_length=MAX_KEY_BYTES, description="PEM of the key that signed")


class Signed(BaseModel):
    """A statement of the publisher, signed with a key of the organisation (see `neuraverse.statement`)."""

    model_config = ConfigDict(extra="forbid")

    statement: str = Field(max_length=8192, description="exact text of the statement, a JSON object")
    signature: str = Field(max_length=1024, description="base64 of the ECDSA P-256 signature over it")
    key: str = Field("", max_length=80, description="fingerprint of the key, for people")


class Shown(BaseModel):
    """Who may see a skill."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"visibility": "private"}]})

    visibility: Visibility


class _Short(StreamingResponse):
    """A body that is read to its end even if its client has gone: to look out for that costs more."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.stream_response(send)


def router(registry: Registry) -> APIRouter:
    """The routes."""
    api = APIRouter(tags=["skills"])
    _add_publish(api, registry)
    _add_find(api, registry)
    _add_archive(api, registry)
    _add_documents(api, registry)
    return api


def _add_publish(api: APIRouter, registry: Registry) -> None:
    parcel = {"description": "a ustar archive", "schema": {"type": "string", "format": "binary"}}
    body = {"application/json": {"schema": Publish.model_json_schema()}, PARCEL: parcel}

    @api.post(
        "/v1/skills",
        status_code=201,
        responses={200: {"description": "The same bytes were published before."}, **refusals(403, 409)},
        openapi_extra={"requestBody": {"required": True, "content": body}},
    )
    async def publish(
        request: Request,
        caller: Who,
        visibility: Annotated[Visibility | None, Query(description="of a new skill")] = None,
    ) -> JSONResponse:
        """Publish a signed manifest. 201: published; 200: the same bytes were published before.

        Either as JSON, its files uploaded before; or as a tar of manifest.json, signature.json, public.pem
        and those files that the registry may lack, in one round trip.
        """
        if request.headers.get("content-type") == PARCEL:
            parts = archive.unpack(
                [chunk async for chunk in request.stream()], (MANIFEST, SIGNATURE, PUBLIC_KEY), optional=BLOBS
            )
            documents = [parts.pop(name) for name in (MANIFEST, SIGNATURE, PUBLIC_KEY)]
        else:
            said = _json(await request.body())
            documents = [text.encode() for text in (said.manifest, said.signature, said.public_key)]
            parts = {}
        new, created = await registry.publish(
            caller, documents[0], documents[1], documents[2], parts, visibility
        )
        name, version = new.manifest.name, new.manifest.version
        answer = {
            "name": name,
            "version": version,
            "digest": new.digest,
            "url": f"/v1/skills/{name}/{version}",
        }
        return JSONResponse(answer, 201 if created else 200, {"Location": answer["url"]})

    @api.post("/v1/skills/{org}/{name}/statements", responses=refusals(403, 404, 409))
    async def change(org: Label, name: Label, body: Signed, caller: Who) -> JSONResponse:
        """Move an alias, yank, revoke or deprecate, as the signed statement says."""
        return JSONResponse(await registry.change(caller, f"{org}/{name}", body.statement, body.signature))

    @api.patch("/v1/skills/{org}/{name}", responses=refusals(404, 409))
    async def show(org: Label, name: Label, body: Shown, caller: Who) -> JSONResponse:
        """Show a skill to everybody, to whoever signs in, or to the organisation alone."""
        done = await registry.rule(changes.show, caller, registry.settings, f"{org}/{name}", body.visibility)
        return JSONResponse(done)


def _add_find(api: APIRouter, registry: Registry) -> None:
    @api.get("/v1/skills/{org}/{name}", responses=refusals(404))
    async def describe(org: Label, name: Label, caller: Who) -> JSONResponse:
        """Versions, the latest first, and aliases."""
        return JSONResponse(
            await registry.database.read(index.describe, caller, f"{org}/{name}"), headers=_FRESH
        )

    @api.get("/v1/skills/{org}/{name}/diff", responses=refusals(404, 409, 410))
    async def diff(
        caller: Who,
        org: Label,
        name: Label,
        old: Annotated[str, Query(alias="from", max_length=128, examples=["1.0.0"])],
        new: Annotated[str, Query(alias="to", max_length=128, examples=["1.1.0"])],
    ) -> JSONResponse:
        """What differs between two versions: interface, evaluation, training, files."""
        return JSONResponse(
            await registry.database.read(difference, caller, f"{org}/{name}", old, new), headers=_FRESH
        )

    @api.get("/v1/skills/{org}/{name}/aliases/{alias}", responses=refusals(404))
    async def alias(org: Label, name: Label, alias: Alias, caller: Who) -> JSONResponse:
        """What an alias means, and how it has moved: when, and signed by whom."""
        return JSONResponse(
            await registry.database.read(index.alias, caller, f"{org}/{name}", alias), headers=_FRESH
        )

    @api.get("/v1/skills/{org}/{name}/{version}", responses=refusals(404, 409, 410))
    async def resolve(org: Label, name: Label, version: Which, caller: Who) -> JSONResponse:
        """The digest behind a version, a range, an alias or `latest`, with its lineage."""
        return JSONResponse(
            await registry.database.read(index.find, caller, f"{org}/{name}", version), headers=_FRESH
        )

    @api.get("/v1/skills/{org}/{name}/{version}/lineage", responses=refusals(404, 409, 410))
    async def lineage(org: Label, name: Label, version: Which, caller: Who) -> JSONResponse:
        """Its ancestors and descendants as a graph."""
        return JSONResponse(
            await registry.database.read(graph, caller, f"{org}/{name}", version), headers=_FRESH
        )


def _add_archive(api: APIRouter, registry: Registry) -> None:
    tar = {"description": "A tar of the skill's folder.", "content": {PARCEL: {}}}

    @api.get(
        "/v1/skills/{org}/{name}/{version}/archive",
        response_class=Response,
        responses={200: tar, 304: {"description": "You have it."}, **refusals(404, 409, 410)},
    )
    async def whole(
        request: Request,
        org: Label,
        name: Label,
        version: Which,
        caller: Who,
        held: Annotated[Version | None, Query(description="a version that the caller has")] = None,
    ) -> Response:
        """All of a skill in one answer: ``curl … | tar x`` gives its folder.

        Headers say which version and digest it is. With `held`, ``Neuraverse-Held`` is the state of that
        version, ``active``, ``yanked`` or ``revoked``, if there is such a version.
        """
        found = await registry.database.read(index.files, caller, f"{org}/{name}", version, held)
        headers = _FRESH | {
            "ETag": archive.etag(found.digest),
            "Neuraverse-Version": found.version,
            "Neuraverse-Digest": found.digest,
        }
        if found.warnings:
            headers["Neuraverse-Warnings"] = _warnings(found.warnings)
        if found.held:
            headers["Neuraverse-Held"] = found.held
        if not_modified(request, headers["ETag"].strip('"')):
            return Response(status_code=304, headers=headers)
        if found.lost:
            raise index.lost(found.lost)
        blobs = {entry: found.files[entry] for entry in BLOBS}
        documents = {MANIFEST: found.manifest, SIGNATURE: found.signature}
        sizes = [len(data) for data in documents.values()] + [blob.size for blob in blobs.values()]
        headers["Content-Length"] = str(archive.total(sizes))

        parts: list[bytes | Blob] = []
        for entry, data in documents.items():
            parts += archive.header(entry, len(data)), data, archive.padding(len(data))
        for entry, blob in blobs.items():
            parts += archive.header(entry, blob.size), blob, archive.padding(blob.size)
        parts.append(archive.END)
        kind = _Short if archive.total(sizes) <= archive.SMALL_BYTES else StreamingResponse
        return kind(registry.store.concat(parts), media_type=PARCEL, headers=headers)


def _add_documents(api: APIRouter, registry: Registry) -> None:
    async def document(request: Request, caller: Caller, digest: str, kind: str) -> Response:
        data, everybody = await registry.database.read(index.document, caller, f"sha256:{digest}", kind)
        # One manifest may have been signed twice, so the tag of a signature says more than the digest.
        tag = digest if kind == "manifest" else f"{digest}-{kind}"
        if not_modified(request, tag):
            return Response(status_code=304, headers=immutable_headers(tag, everybody))
        return Response(data, media_type="application/json", headers=immutable_headers(tag, everybody))

    responses: dict[int | str, dict[str, Any]] = {
        200: {"description": "The exact bytes.", "content": {"application/json": {}}},
        304: {"description": "You have them."},
        **refusals(404, 410),
    }

    @api.get("/v1/manifests/{digest}", response_class=Response, responses=responses)
    async def manifest(digest: Hex, request: Request, caller: Who) -> Response:
        """The exact bytes of a manifest."""
        return await document(request, caller, digest, "manifest")

    @api.get("/v1/manifests/{digest}/signature", response_class=Response, responses=responses)
    async def signature(digest: Hex, request: Request, caller: Who) -> Response:
        """The exact bytes of its signature."""
        return await document(request, caller, digest, "signature")

    pem = {"description": "One PEM after the other.", "content": {"application/x-pem-file": {}}}

    @api.get("/v1/orgs/{org}/key", response_class=Response, responses={200: pem, **refusals(404)})
    async def key(org: Label, caller: Who) -> Response:
        """The public keys that an organisation publishes with, as PEM."""
        text = "".join(await registry.database.read(index.keys, caller, org))
        return Response(text, media_type="application/x-pem-file", headers=_FRESH)


def _warnings(texts: list[str]) -> str:
    """Sentences as a header: JSON, in which a letter may take twelve bytes."""
    plain = json.dumps(texts)
    return plain if len(plain) <= _MAX_HEADER else json.dumps([f"{text[:80]}…" for text in texts])


def _json(body: bytes) -> Publish:
    """Read a JSON body as FastAPI does; it cannot do so where a route also takes another type."""
    if not few_texts(body):
        raise Problem(422, "invalid", f"the body is more than an object of {', '.join(Publish.model_fields)}")
    try:
        return Publish.model_validate_json(body, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:MAX_SHOWN]
        raise Problem(
            422, "invalid", f"body field {field!r}: {first['msg']}" if field else first["msg"], field=field
        ) from error
