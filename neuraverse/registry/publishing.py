"""What a publish must pass, and how it enters the index: blobs, version and event in one transaction."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, bindparam, insert, select

from neuraverse.manifest import SkillManifest, digest_of
from neuraverse.registry.database import Database, notify
from neuraverse.registry.problems import Problem
from neuraverse.registry.stores import Blob, Incoming
from neuraverse.registry.tables import (
    blobs,
    events,
    lineage,
    manifests,
    now,
    orgs,
    publisher_keys,
    skills,
    version_files,
    versions,
)
from neuraverse.registry.vault import Vault, record
from neuraverse.skill import check_blob
from neuraverse.trust import PublicKey, verify_manifest
from neuraverse.versions import is_prerelease, order_key

_LARGE_BYTES = 16 << 20  # files above it are checked one at a time
# Statements of each publish, made once: making one takes as long as carrying it out.
_HELD_BLOBS = select(blobs).where(blobs.c.sha256.in_(bindparam("digests", expanding=True)), ~blobs.c.lost)
_OWNER = (
    select(orgs.c.id, publisher_keys.c.fingerprint)
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
    """

    manifest: SkillManifest
    data: bytes
    digest: str
    interface: str
    signature: bytes
    fingerprint: str
    pem: str
    files: Mapping[str, bytes]


class Publisher:
    """Takes skills in.

    Args:
        database: The index.
        vault: The blobs.
    """

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault
        self._one_large = asyncio.Lock()

    async def publish(
        self, manifest: bytes, signature: bytes, public_key: bytes, files: Mapping[str, bytes]
    ) -> tuple[Submission, bool]:
        """Check a skill, and make it visible.

        Args:
            manifest: Exact bytes of manifest.json.
            signature: Exact bytes of signature.json.
            public_key: PEM of the key that signed.
            files: Those of its files that come along; the others must be here.

        Returns:
            What was published, and whether it is new (False: the same bytes were there).

        Raises:
            ContentError: The manifest, the signature or a file is wrong.
            Problem: A blob is missing, the organisation belongs to another key, the version is taken, or a
                parent does not exist.
            StorageError: The store is full or failing; nothing is kept.
        """
        new = await asyncio.to_thread(_checked, manifest, signature, public_key, files)
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
            created, used = await self._database.write(_enter, new, arrived, self._vault.lease_until())
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
        here = await self._database.read(_blobs, [entry.sha256 for entry in new.manifest.files.values()])
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


def _blobs(db: Connection, digests: Sequence[str]) -> dict[str, Blob]:
    """Those that are here."""
    rows = db.execute(_HELD_BLOBS, {"digests": digests})
    return {row.sha256: Blob(sha256=row.sha256, size=row.size, key=row.key) for row in rows}


def _enter(
    db: Connection, new: Submission, arrived: Sequence[Incoming], lease_until: str
) -> tuple[bool, list[str]]:
    """Enter blobs, a version and its event.

    Returns:
        Whether the version is new: False if the same bytes were there; and the digests of new blobs.

    Raises:
        Problem: 403 the organisation belongs to another key, 409 the version is taken by other bytes, 422 a
            blob or a parent does not exist.
    """
    manifest = new.manifest
    used = record(db, arrived, lease_until)
    org_id = _bind_org(db, new)
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
    skill_id = (
        _add(db, skills, org_id=org_id, name=manifest.name, created_at=now()) if known is None else known.id
    )
    _hold(db, manifest, used)
    parents = _parents(db, manifest.parents)
    version_id = _add(db, versions, **_version_row(skill_id, new))
    db.execute(
        insert(manifests), {"version_id": version_id, "manifest": new.data, "signature": new.signature}
    )
    files = [
        {"version_id": version_id, "name": name, "sha256": entry.sha256, "size": entry.size}
        for name, entry in manifest.files.items()
    ]
    db.execute(insert(version_files), files)
    if parents:
        db.execute(insert(lineage), [{"child_id": version_id, "parent_id": each} for each in parents])
    data = {"parents": list(manifest.parents), "interface": new.interface}
    tell(db, org_id, "published", manifest.name, manifest.version, new.digest, new.fingerprint, data)
    notify(db)
    return True, used


def _hold(db: Connection, manifest: SkillManifest, new: Sequence[str]) -> None:
    """All blobs must still be here: the collector may have come since they were looked at."""
    wanted = {entry.sha256 for entry in manifest.files.values()}.difference(new)
    found = _blobs(db, list(wanted)) if wanted else {}
    for name, entry in manifest.files.items():
        if entry.sha256 in wanted and entry.sha256 not in found:
            raise missing_blob(name, entry.sha256)


def _add(db: Connection, table: Any, **values: Any) -> int:
    key = db.execute(insert(table), values).inserted_primary_key
    assert key is not None
    return int(key[0])


def _bind_org(db: Connection, new: Submission) -> int:
    """The organisation's id. The first key that publishes under a name owns it."""
    org = new.manifest.org
    known = db.execute(_OWNER, {"org": org, "fingerprint": new.fingerprint}).one_or_none()
    if known is None:
        org_id = _add(db, orgs, name=org, created_at=now())
        key = {"org_id": org_id, "fingerprint": new.fingerprint, "pem": new.pem, "created_at": now()}
        db.execute(insert(publisher_keys), key)
        return org_id
    if known.fingerprint is None:
        raise Problem(
            403,
            "not-your-org",
            f"the organisation {org!r} publishes with another key than {new.fingerprint}",
            remedy="sign with the organisation's key, or publish under a name of your own",
            field="signature",
        )
    return int(known.id)


def _parents(db: Connection, digests: Sequence[str]) -> list[int]:
    if not digests:
        return []
    query = select(versions.c.digest, versions.c.id).where(versions.c.digest.in_(digests))
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
    words = (
        *(manifest.name, manifest.title, manifest.description),
        *(manifest.body.robot, manifest.task.env_id, *manifest.tags),
    )
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
        "search": "\n".join(words).lower(),
        "created_at": now(),
    }


def tell(
    db: Connection,
    org_id: int,
    kind: str,
    name: str,
    version: str,
    digest: str,
    by: str,
    data: Mapping[str, Any],
) -> int:
    """Add an event; its id."""
    row = {"org_id": org_id, "type": kind, "name": name, "version": version, "digest": digest}
    return _add(db, events, **row, at=now(), by=by, data=dict(data))
