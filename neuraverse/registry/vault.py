"""Blobs of the registry: objects of the store that a row speaks of, and uploads on their way there."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, delete, exists, insert, select, update

from neuraverse.errors import IntegrityError, NeuraverseError
from neuraverse.registry.config import Settings
from neuraverse.registry.database import Database
from neuraverse.registry.index import lost
from neuraverse.registry.problems import Problem
from neuraverse.registry.stores import Blob, Incoming, Store
from neuraverse.registry.tables import (
    PUBLIC,
    REVOKED,
    blobs,
    holdings,
    now,
    skills,
    uploads,
    version_files,
    versions,
)
from neuraverse.registry.tenants.access import Caller
from neuraverse.registry.tenants.quotas import hold, holder, usable, visible

_KNOWN = select(blobs.c.sha256, blobs.c.lost).where(blobs.c.sha256.in_(bindparam("digests", expanding=True)))
_HELD = (
    select(versions.c.state)
    .select_from(version_files.join(versions).join(skills))
    .where(version_files.c.sha256 == bindparam("sha256"))
)


class Vault:
    """Bytes by their digest.

    Args:
        database: The index.
        store: Where they lie.
        settings: Lease, expiry and size limit.
    """

    def __init__(self, database: Database, store: Store, settings: Settings) -> None:
        self._database = database
        self.store = store
        self._settings = settings

    async def find(self, caller: Caller, sha256: str) -> tuple[Blob, bool]:
        """A blob that may be read, and whether everybody may.

        Raises:
            Problem: 404 there is none, 410 only revoked versions hold it.
        """
        row = await self._database.read(_row, caller, sha256)
        if row is None or not row.shown:
            raise Problem(404, "no-such-blob", f"there is no blob {sha256}")
        if row.held and not row.free:
            raise Problem(
                410,
                "revoked",
                f"the blob {sha256} belongs to a skill that was revoked",
                remedy="use another version",
            )
        if row.lost:
            raise lost(sha256)
        return Blob(sha256=sha256, size=row.size, key=row.key), row.public

    async def missing(self, caller: Caller, org: str, digests: Sequence[str]) -> list[str]:
        """Those of the digests that are not here for who asks; those that are, are kept to be published.

        Raises:
            Problem: 401, 403.
        """
        held = await self._database.read(_usable, caller, org, digests, self._settings)
        if any(until < now(self._settings.grace_hours / 2) for until in held.values()):
            # And look again: the collector may have come between.
            held = await self._database.write(_lease, list(held), self.lease_until())
        return [d for d in dict.fromkeys(digests) if d not in held]

    async def put(self, caller: Caller, org: str, sha256: str, body: AsyncIterator[bytes]) -> bool:
        """Store a body under the digest that it claims, for an organisation.

        Returns:
            True if it is new, False if it was here; the body is not read then.

        Raises:
            Problem: 401, 403, 413.
            IntegrityError: The bytes have another digest; nothing is kept.
            StorageError: The store is full or failing; nothing is kept.
        """
        if not await self.missing(caller, org, [sha256]):
            return False
        arrived = await self.store.receive(sha256, body)
        await self._expect(arrived, sha256)
        await self._enter(caller, org, arrived)
        return True

    async def _expect(self, arrived: Incoming, sha256: str) -> None:
        if arrived.sha256 != sha256:
            await self.store.delete(arrived.key)
            raise IntegrityError(
                f"the body has the digest {arrived.sha256}, not {sha256}",
                remedy="send the bytes that the digest names",
            )

    async def _enter(self, caller: Caller, org: str, arrived: Incoming) -> None:
        """Make an object durable, and a blob that somebody holds; a copy of what was here is removed."""
        try:
            await self.store.seal([arrived])
            until = self.lease_until()
            new = await self._database.write(_enter, caller, org, arrived, until, self._settings)
        except BaseException as error:
            await self.drop([arrived], error)
            raise
        if not new:
            await self.drop([arrived])

    async def drop(self, arrived: Iterable[Incoming], error: BaseException | None = None) -> None:
        """Remove objects that did not become blobs.

        Args:
            arrived: The objects.
            error: Why. If a database on another machine failed, they may have become blobs after all, and are
                left to the collector.
        """
        refused = error is None or isinstance(error, (Problem, NeuraverseError))
        if refused or self._database.kind == "sqlite":
            for each in arrived:
                await self.store.delete(each.key)

    def lease_until(self) -> str:
        """Until when a blob without a version is kept, if it is touched now."""
        return now(self._settings.grace_hours)

    async def begin(self, caller: Caller, org: str, sha256: str, size: int) -> dict[str, Any]:
        """Start a resumable upload for an organisation, unless the blob is here.

        Raises:
            Problem: 401, 403, 413.
        """
        if size > self._settings.max_blob_bytes:
            raise Problem(
                413,
                "too-large",
                f"{size} bytes are more than the limit of {self._settings.max_blob_bytes}",
                field="size",
            )
        await self._database.read(holder, caller, org, self._settings, size)
        if not await self.missing(caller, org, [sha256]):
            return {"exists": True, "sha256": sha256, "size": size}
        row = {
            "id": secrets.token_hex(16),
            "holder": org,
            "sha256": sha256,
            "size": size,
            "created_at": now(),
            "expires_at": now(self._settings.upload_hours),
        }
        await self._database.write(_begin, row)
        return {"id": row["id"], "sha256": sha256, "size": size, "offset": 0, "expires": row["expires_at"]}

    async def progress(self, caller: Caller, upload: str) -> dict[str, Any]:
        """Where an upload stands.

        Raises:
            Problem: 404 unknown or expired.
        """
        row, offset = await self._at(caller, upload)
        return {
            "id": upload,
            "sha256": row.sha256,
            "size": row.size,
            "offset": offset,
            "expires": row.expires_at,
        }

    async def _at(self, caller: Caller, upload: str) -> tuple[Row[Any], int]:
        """The row of one of the caller's uploads, and how many bytes of it are here."""
        row = await self._database.read(_upload, caller, upload, self._settings)
        if row is None or row.expires_at <= now():
            raise Problem(
                404, "no-such-upload", f"there is no upload {upload}, or it has expired", remedy="begin anew"
            )
        return row, min(await self.store.received(upload), row.size)

    async def append(
        self, caller: Caller, upload: str, offset: int, body: AsyncIterator[bytes], length: int | None
    ) -> int:
        """Add bytes to an upload; the new offset. Of a body that is cut, what came is kept.

        Args:
            caller: Who sends them.
            upload: Its id.
            offset: Where the bytes begin; must be where the upload stands.
            body: The bytes.
            length: How many are announced, if that is known.

        Raises:
            Problem: 404, 409 the offset is another, 413 more than the upload's size.
        """
        row, reached = await self._at(caller, upload)
        await self._database.read(holder, caller, row.holder, self._settings, row.size)
        if offset != reached:
            raise Problem(
                409,
                "offset",
                f"the upload stands at byte {reached}, not {offset}",
                remedy="go on from there",
                field="Upload-Offset",
                extra={"offset": reached},
            )
        if length is not None and offset + length > row.size:
            raise self._longer(row.size)
        counted = 0

        async def counting() -> AsyncIterator[bytes]:
            nonlocal counted
            async for chunk in body:
                counted += len(chunk)
                if offset + counted > row.size:
                    raise self._longer(row.size)
                yield chunk

        return await self.store.append(upload, offset, counting(), row.size)

    @staticmethod
    def _longer(size: int) -> Problem:
        return Problem(
            413,
            "too-large",
            f"the upload was announced with {size} bytes",
            remedy="begin anew with the right size",
        )

    async def finish(self, caller: Caller, upload: str) -> tuple[str, bool]:
        """Turn an upload into a blob; its digest, and whether it is new. Asking again is answered again.

        Raises:
            Problem: 404, 409 bytes are missing.
            IntegrityError: The bytes have another digest; the upload is gone.
        """
        row, reached = await self._at(caller, upload)
        if await self._database.read(_finished, upload):
            await self.store.discard(upload)
            return str(row.sha256), False
        if reached < row.size:
            raise Problem(
                409,
                "incomplete",
                f"{reached} of {row.size} bytes are here",
                remedy="send the rest",
                extra={"offset": reached},
            )
        arrived = await self.store.finish(upload, row.sha256)
        try:
            await self._expect(arrived, row.sha256)
        except IntegrityError:
            await self.abandon(upload)
            raise
        await self._enter(caller, row.holder, arrived)
        return str(row.sha256), True

    async def abandon(self, upload: str) -> None:
        """Forget an upload."""
        await self._database.write(_forget, upload)
        await self.store.discard(upload)


def known_keys(db: Connection, keys: Sequence[str]) -> set[str]:
    """Those that a row speaks of."""
    return set(db.scalars(select(blobs.c.key).where(blobs.c.key.in_(keys))))


def record(db: Connection, arrived: Sequence[Incoming], lease_until: str) -> list[str]:
    """Enter rows for objects that are durable; the digests that are new. What was lost is found again."""
    coming = {each.sha256: each for each in arrived}
    known = {row.sha256: row.lost for row in db.execute(_KNOWN, {"digests": list(coming)})}
    new = [
        {"sha256": sha256, "size": each.size, "key": each.key, "lease_until": lease_until, "lost": False}
        for sha256, each in coming.items()
        if known.get(sha256, True)
    ]
    fresh = [row | {"created_at": now()} for row in new if row["sha256"] not in known]
    if fresh:
        db.execute(insert(blobs), fresh)
    for row in new:
        if row["sha256"] in known:
            db.execute(update(blobs).where(blobs.c.sha256 == row["sha256"]).values(row))
    return [str(row["sha256"]) for row in new]


def _enter(
    db: Connection, caller: Caller, org: str, arrived: Incoming, lease_until: str, settings: Settings
) -> bool:
    """As `record`, held by an organisation; whether it is new to the registry."""
    holder(db, caller, org, settings, arrived.size)
    hold(db, org, {arrived.sha256: arrived.size}, lease_until)
    if record(db, [arrived], lease_until):
        return True
    _lease(db, [arrived.sha256], lease_until)
    return False


def _usable(
    db: Connection, caller: Caller, org: str, digests: Sequence[str], settings: Settings
) -> dict[str, str]:
    """Those that are here for who asks, and until when they are kept."""
    return _leases(db, list(usable(db, caller, holder(db, caller, org, settings), digests)))


def _lease(db: Connection, digests: Sequence[str], until: str) -> dict[str, str]:
    """Keep those that are here until then at least; which those are."""
    held = dict.fromkeys(_leases(db, digests), until)
    if held:
        later = and_(blobs.c.sha256.in_(held), blobs.c.lease_until < until)
        db.execute(update(blobs).where(later).values(lease_until=until))
    return held


def _leases(db: Connection, digests: Sequence[str]) -> dict[str, str]:
    """Those that are here, and until when they are kept."""
    query = select(blobs.c.sha256, blobs.c.lease_until).where(blobs.c.sha256.in_(digests), ~blobs.c.lost)
    return {row.sha256: row.lease_until for row in db.execute(query)}


def _row(db: Connection, caller: Caller, sha256: str) -> Row[Any] | None:
    """A blob; whether it exists for the caller, and a version that they see holds it, one that stands."""
    seen = _HELD.where(caller.seen())
    free = seen.where(versions.c.state != REVOKED)
    query = select(
        blobs,
        exists(seen).label("held"),
        exists(free).label("free"),
        exists(free.where(skills.c.visibility == PUBLIC)).label("public"),
        visible(caller, sha256).label("shown"),
    )
    return db.execute(query.where(blobs.c.sha256 == sha256), {"sha256": sha256}).one_or_none()


def _begin(db: Connection, row: dict[str, Any]) -> None:
    db.execute(insert(uploads), row)


def _upload(db: Connection, caller: Caller, upload: str, settings: Settings) -> Row[Any] | None:
    """One of the caller's uploads."""
    row = db.execute(select(uploads).where(uploads.c.id == upload)).one_or_none()
    if row is not None:
        try:
            holder(db, caller, row.holder, settings)
        except Problem:
            return None
    return row


def _finished(db: Connection, upload: str) -> bool:
    """Whether the blob of an upload is here for whom it was begun."""
    mine = and_(holdings.c.holder == uploads.c.holder, holdings.c.sha256 == uploads.c.sha256)
    known = and_(uploads.c.id == upload, blobs.c.sha256 == uploads.c.sha256, ~blobs.c.lost)
    return db.scalar(select(uploads.c.id).where(known, exists().where(mine))) is not None


def _forget(db: Connection, upload: str) -> None:
    db.execute(delete(uploads).where(uploads.c.id == upload))
