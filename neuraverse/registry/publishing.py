"""What a publish must pass, and how it enters the index: blobs, version and event in one transaction."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, insert, select, update

from neuraverse.manifest import SkillManifest, digest_of
from neuraverse.registry.config import Settings
from neuraverse.registry.database import Database, notify
from neuraverse.registry.events import now_us, tell
from neuraverse.registry.finding.listing import facets_of, keep_interface, relist
from neuraverse.registry.problems import Problem
from neuraverse.registry.stores import Blob, Incoming
from neuraverse.registry.tables import (
    PUBLIC,
    add_row,
    blobs,
    lineage,
    manifests,
    now,
    orgs,
    publisher_keys,
    skills,
    version_files,
    versions,
)
from neuraverse.registry.tenants.access import Caller, forbidden, note
from neuraverse.registry.tenants.quotas import Limits, event_allowed, held_before, hold, room_for, usable
from neuraverse.registry.vault import Vault, record
from neuraverse.skill import check_blob
from neuraverse.trust import PublicKey, verify_manifest
from neuraverse.versions import is_prerelease, order_key

_LARGE_BYTES = 16 << 20  # files above it are checked one at a time
# Statements of each publish, made once: making one takes as long as carrying it out.
_HELD_BLOBS = select(blobs).where(blobs.c.sha256.in_(bindparam("digests", expanding=True)), ~blobs.c.lost)
_OWNER = (
    select(orgs, publisher_keys.c.fingerprint, publisher_keys.c.revoked_at)
    .outerjoin(
        publisher_keys,
        and_(publisher_keys.c.org_id == orgs.c.id, publisher_keys.c.fingerprint == bindparam("fingerprint")),
    )
    .where(orgs.c.name == bindparam("org"))
)
_TAKEN = (
    select(skills.c.id, versions.c.digest)
    .outerjoin(versions, and_(versions.c.skill_id == skills.c.id, versions.c.version == bindparam("version")))
    .where(skills.c.name == bindparam("name"))
)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A publish whose manifest, signature and the files that came along have been checked.

    Attributes:
        manifest: What `data` says.
        data: Exact bytes of the manifest.
        digest: ``sha256:<hex>`` of them.
        interface: Digest of the skill's interface.
        signature: Exact bytes of the signature.
        fingerprint: Of the key that signed.
        pem: That key.
        files: Files that came along, by name.
        caller: Who publishes it.
        visibility: Who shall see it, if it is the first of its skill; None leaves that to the organisation.
    """

    manifest: SkillManifest
    data: bytes
    digest: str
    interface: str
    signature: bytes
    fingerprint: str
    pem: str
    files: Mapping[str, bytes]
    caller: Caller = field(default_factory=Caller)
    visibility: str | None = None


class Publisher:
    """Takes skills in.

    Args:
        database: The index.
        vault: The blobs.
        settings: Limits of organisations that have none of their own.
    """

    def __init__(self, database: Database, vault: Vault, settings: Settings) -> None:
        self._database = database
        self._vault = vault
        self._settings = settings
        self._one_large = asyncio.Lock()

    async def publish(
        self,
        caller: Caller,
        manifest: bytes,
        signature: bytes,
        public_key: bytes,
        files: Mapping[str, bytes],
        visibility: str | None,
    ) -> tuple[Submission, bool]:
        """Check a skill, and make it visible.

        Args:
            caller: Who publishes.
            manifest: Exact bytes of manifest.json.
            signature: Exact bytes of signature.json.
            public_key: PEM of the key that signed.
            files: Those of its files that come along; the others must be here.
            visibility: Of a new skill; the organisation's own if None.

        Returns:
            What was published, and whether it is new (False: the same bytes were there).

        Raises:
            ContentError: The manifest, the signature or a file is wrong.
            Problem: The caller may not publish there, a blob is missing, the key is not one of the
                organisation's, the version is taken, a parent does not exist, or a quota is reached.
            StorageError: The store is full or failing; nothing is kept.
        """
        new = await asyncio.to_thread(_checked, manifest, signature, public_key, files)
        new = replace(new, caller=caller, visibility=visibility)
        try:
            return new, await self._take(new, await self._here(new))
        except Problem as problem:
            if problem.kind != "missing-blob" or not files:
                raise
        # The collector took a blob whose copy came along: this time, all copies are kept.
        return new, await self._take(new, await self._here(new, afresh=True))

    async def _take(self, new: Submission, here: Mapping[str, Blob]) -> bool:
        """Store what is not here, check what is, and enter the whole; whether it is new."""
        fresh = {
            entry.sha256: new.files[name]
            for name, entry in new.manifest.files.items()
            if name in new.files and entry.sha256 not in here
        }
        arrived = await self._vault.store.keep(fresh)
        try:
            for name, entry in new.manifest.files.items():
                if name not in new.files:
                    await self._check(name, new, here[entry.sha256])
            created, used = await self._database.write(
                _enter, new, arrived, self._vault.lease_until(), self._settings
            )
        except BaseException as error:
            await self._vault.drop(arrived, error)
            raise
        await self._vault.drop(each for each in arrived if each.sha256 not in used)
        return created

    async def _here(self, new: Submission, *, afresh: bool = False) -> dict[str, Blob]:
        """The blobs of the manifest that are here, by digest; those that came along need not be.

        Args:
            new: The publish.
            afresh: Count those that came along as not here.
        """
        here = await self._database.read(_present, new, self._settings)
        for name, entry in new.manifest.files.items():
            if name in new.files:
                if afresh:
                    here.pop(entry.sha256, None)
                continue
            blob = here.get(entry.sha256)
            if blob is None:
                raise missing_blob(name, entry.sha256)
            if blob.size != entry.size:
                raise Problem(
                    422,
                    "size",
                    f"{name} has {blob.size} bytes; the manifest says {entry.size}",
                    remedy="mend the manifest",
                    field=f"files.{name}.size",
                )
        return here

    async def _check(self, name: str, new: Submission, blob: Blob) -> None:
        """The content of one file that is here."""
        async with contextlib.AsyncExitStack() as stack:
            if blob.size > _LARGE_BYTES:
                await stack.enter_async_context(self._one_large)
            view = await stack.enter_async_context(self._bytes(blob))
            await asyncio.to_thread(check_blob, name, view, new.manifest)

    @contextlib.asynccontextmanager
    async def _bytes(self, blob: Blob) -> AsyncIterator[bytes]:
        """A blob as a buffer that the system may page out."""
        if blob.size == 0:
            yield b""
            return
        path = self._vault.store.local(blob.key)
        with contextlib.ExitStack() as stack:
            if path is not None:
                file = stack.enter_context(path.open("rb"))
            else:
                file = stack.enter_context(tempfile.TemporaryFile(prefix="neuraverse-"))  # type: ignore[arg-type]
                async for chunk in self._vault.store.read(blob.key, 0, blob.size):
                    await asyncio.to_thread(file.write, chunk)
                file.flush()
            yield stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))  # type: ignore[misc]


def missing_blob(name: str, sha256: str) -> Problem:
    """The answer to a publish before its files."""
    return Problem(
        422,
        "missing-blob",
        f"the blob of {name}, {sha256}, has not been uploaded",
        remedy="PUT it under /v1/blobs first, or send it along",
        field=f"files.{name}",
    )


def _checked(manifest: bytes, signature: bytes, public_key: bytes, files: Mapping[str, bytes]) -> Submission:
    parsed = SkillManifest.parse(manifest)
    key = PublicKey.parse(public_key)
    fingerprint = verify_manifest(manifest, signature, [key], manifest=parsed)
    for name, data in files.items():
        entry = parsed.files[name]  # type: ignore[index]
        if len(data) != entry.size or digest_of(data) != f"sha256:{entry.sha256}":
            raise Problem(
                422,
                "integrity",
                f"{name} is not the file of {entry.size} bytes and SHA-256 {entry.sha256} in the manifest",
                remedy="send the file that was signed",
                field=f"files.{name}",
            )
        check_blob(name, data, parsed)
    return Submission(
        manifest=parsed,
        data=manifest,
        digest=digest_of(manifest),
        interface=parsed.interface.digest(),
        signature=signature,
        fingerprint=fingerprint,
        pem=key.pem.decode(),
        files=files,
    )


def _present(db: Connection, new: Submission, settings: Settings) -> dict[str, Blob]:
    """Blobs of the manifest that exist for its publisher; refused here is what `_enter` would refuse."""
    _org(db, new)
    digests = [entry.sha256 for entry in new.manifest.files.values()]
    return _blobs(db, list(usable(db, new.caller, new.manifest.org, digests)))


def _blobs(db: Connection, digests: Sequence[str]) -> dict[str, Blob]:
    """Those that are here."""
    rows = db.execute(_HELD_BLOBS, {"digests": digests})
    return {row.sha256: Blob(sha256=row.sha256, size=row.size, key=row.key) for row in rows}


def _enter(
    db: Connection, new: Submission, arrived: Sequence[Incoming], lease_until: str, settings: Settings
) -> tuple[bool, list[str]]:
    """Enter blobs, a version and its event.

    Returns:
        Whether the version is new: False if the same bytes were there; and the digests of new blobs.

    Raises:
        Problem: 401 or 403 the caller may not publish there, or with this key, 409 the version is taken by
            other bytes, 413 or 429 a quota is reached, 422 a blob or a parent does not exist.
    """
    manifest = new.manifest
    used = record(db, arrived, lease_until)
    org = _bind_org(db, new)
    known = db.execute(_TAKEN, {"name": manifest.name, "version": manifest.version}).one_or_none()
    if known is not None and known.digest == new.digest:
        return False, used
    if known is not None and known.digest is not None:
        raise Problem(
            409,
            "version-taken",
            f"{manifest.ref} is published already, as {known.digest}",
            remedy="a version is never reused; publish under a higher one",
            field="version",
        )
    limits = Limits.of(settings, org)
    event_allowed(db, org, limits, now_us())
    skill_id = known.id if known is not None else _new_skill(db, new, org)
    _hold(db, new, arrived)
    size = hold(db, manifest.org, {e.sha256: e.size for e in manifest.files.values()}, None)
    room_for(org, limits, size, versions=1)
    counted = orgs.c.used_versions + 1
    db.execute(update(orgs).where(orgs.c.id == org.id).values(used_versions=counted))
    parents = _parents(db, new.caller, manifest.parents)
    version_id = add_row(db, versions, **_version_row(skill_id, new))
    db.execute(
        insert(manifests), {"version_id": version_id, "manifest": new.data, "signature": new.signature}
    )
    files = [
        {"version_id": version_id, "name": name, "sha256": entry.sha256, "size": entry.size}
        for name, entry in manifest.files.items()
    ]
    db.execute(insert(version_files), files)
    keep_interface(db, new.interface, manifest.interface)
    relist(db, skill_id)
    if parents:
        db.execute(insert(lineage), [{"child_id": version_id, "parent_id": each} for each in parents])
    data = {"parents": list(manifest.parents), "interface": new.interface}
    tell(
        db, org.id, skill_id, "published", manifest.name, manifest.version, new.digest, new.fingerprint, data
    )
    note(db, new.caller, org.id, "publish", manifest.ref, digest=new.digest)
    notify(db)
    return True, used


def _hold(db: Connection, new: Submission, arrived: Sequence[Incoming]) -> None:
    """All blobs must still be here, and be the publisher's to use: the collector may have come meanwhile."""
    wanted = {entry.sha256 for entry in new.manifest.files.values()}.difference(a.sha256 for a in arrived)
    found = _blobs(db, list(usable(db, new.caller, new.manifest.org, wanted))) if wanted else {}
    for name, entry in new.manifest.files.items():
        if entry.sha256 in wanted and entry.sha256 not in found:
            raise missing_blob(name, entry.sha256)


def _new_skill(db: Connection, new: Submission, org: Row[Any]) -> int:
    """The row of a skill that is published for the first time."""
    seen = new.visibility or org.visibility
    if not org.managed and seen != PUBLIC:
        raise Problem(
            422,
            "visibility",
            f"{new.manifest.org} has no members, who could see what is not public",
            remedy="publish it for everybody, or let an operator make the organisation",
            field="visibility",
        )
    values = {"org_id": org.id, "name": new.manifest.name, "visibility": seen, "created_at": now()}
    return add_row(db, skills, **values)


def _org(db: Connection, new: Submission) -> Row[Any] | None:
    """The organisation, if it is there and the caller and the key may publish under its name.

    Raises:
        Problem: 401, 403.
    """
    org = new.manifest.org
    row = db.execute(_OWNER, {"org": org, "fingerprint": new.fingerprint}).one_or_none()
    if not (new.caller.open if row is None else new.caller.acts("publish", row)):
        raise forbidden(new.caller, f"publish under {org}", "publish")
    if row is None or (row.fingerprint is not None and row.revoked_at is None):
        return row
    if row.managed and new.caller.may("admin", row.id) and not _has_keys(db, row.id):
        return row  # an owner's key may be the first one
    raise Problem(
        403,
        "not-your-org",
        f"the organisation {org!r} publishes with another key than {new.fingerprint}",
        remedy="sign with the organisation's key, or "
        + (
            "let its owner add yours: `neuraverse org key add`"
            if row.managed
            else "publish under another name"
        ),
        field="signature",
    )


def _has_keys(db: Connection, org_id: int) -> bool:
    k = publisher_keys.c
    return db.scalar(select(k.fingerprint).where(k.org_id == org_id).limit(1)) is not None


def _bind_org(db: Connection, new: Submission) -> Row[Any]:
    """The organisation. The first key that publishes under a name owns it; so does an owner's first key."""
    row = _org(db, new)
    if row is not None and row.fingerprint is not None:
        return row
    org = new.manifest.org
    if row is None:
        held = held_before(db, org)
        org_id = add_row(db, orgs, name=org, created_at=now(), used_bytes=held)
    else:
        org_id = row.id
    key = {"org_id": org_id, "fingerprint": new.fingerprint, "pem": new.pem, "created_at": now()}
    db.execute(insert(publisher_keys), key)
    note(db, new.caller, org_id, "key.add", new.fingerprint)
    return db.execute(_OWNER, {"org": org, "fingerprint": new.fingerprint}).one()


def _parents(db: Connection, caller: Caller, digests: Sequence[str]) -> list[int]:
    if not digests:
        return []
    query = select(versions.c.digest, versions.c.id).join(skills)
    query = query.where(versions.c.digest.in_(digests), caller.seen())
    known = {row.digest: row.id for row in db.execute(query)}
    missing = [d for d in digests if d not in known]
    if missing:
        raise Problem(
            422,
            "no-such-parent",
            f"the parent {missing[0]} is not in this registry",
            remedy="publish the parent here first",
            field="parents",
        )
    return list(known.values())


def _version_row(skill_id: int, new: Submission) -> dict[str, Any]:
    manifest = new.manifest
    return {
        "skill_id": skill_id,
        "version": manifest.version,
        "prerelease": is_prerelease(manifest.version),
        "order_key": order_key(manifest.version),
        "digest": new.digest,
        "publisher": new.fingerprint,
        "interface": new.interface,
        "title": manifest.title,
        "description": manifest.description,
        "robot": manifest.body.robot,
        "rate": manifest.evaluation.rate,
        "lower": manifest.evaluation.lower,
        "n": manifest.evaluation.episodes,
        "facets": facets_of(manifest),
        "created_at": now(),
    }
