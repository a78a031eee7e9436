"""The collector: removes what no version refers to and nobody is working on, on a live registry.

1. Rows of blobs without a version, past their lease, go in one transaction. A publish holds the same lock, so
   it either refers to the blob before, or finds it missing and says so.
2. Only then the objects go. Their keys are never used again, so a new upload of the same bytes is not hit.
3. Objects that no row speaks of are what a crash left. They go when they are older than the grace, and than
   an hour: those of a publish that is under way have no row yet.
4. Expired uploads go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row, delete, exists, select

from neuraverse.registry.tables import blobs, now, uploads, version_files
from neuraverse.registry.tenants.quotas import let_go
from neuraverse.registry.vault import known_keys

if TYPE_CHECKING:
    from neuraverse.registry.service import Registry

_BATCH = 500
_STRAY_S = 3600.0  # at least, whatever the grace


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What was removed.

    Attributes:
        blobs: Blobs without a version.
        strays: Objects without a row.
        uploads: Uploads that expired.
        bytes: Of the blobs and strays.
    """

    blobs: int
    strays: int
    uploads: int
    bytes: int

    @property
    def sentence(self) -> str:
        """For a log."""
        return (
            f"{self.blobs} unused blobs, {self.strays} stray objects, {self.uploads} expired uploads, "
            f"{self.bytes} bytes"
        )


async def collect(registry: Registry, *, dry_run: bool = False) -> Collected:
    """Remove garbage.

    Args:
        registry: An open one; a server may be running on it.
        dry_run: Only count.

    Raises:
        StorageError: The store fails; what was removed so far is consistent.
    """
    if not dry_run:
        await registry.database.write(let_go)
    count = size = 0
    while True:
        rows = await registry.database.write(_unused, None if dry_run else _BATCH)
        for row in rows:
            if not dry_run:
                await registry.store.delete(row.key)
        count += len(rows)
        size += sum(row.size for row in rows)
        if dry_run or len(rows) < _BATCH:
            break
    strays, stray_bytes = await _strays(registry, dry_run)
    return Collected(
        blobs=count, strays=strays, uploads=await _uploads(registry, dry_run), bytes=size + stray_bytes
    )


def _unused(db: Connection, batch: int | None) -> list[Row[Any]]:
    """Blobs that nobody needs: some, whose rows are removed, or without a limit all, and none is."""
    unused = ~exists().where(version_files.c.sha256 == blobs.c.sha256)
    query = select(blobs).where(blobs.c.lease_until <= now(), unused)
    rows = list(db.execute(query.limit(batch)))
    if batch is not None and rows:
        db.execute(delete(blobs).where(blobs.c.sha256.in_([row.sha256 for row in rows])))
    return rows


async def _strays(registry: Registry, dry_run: bool) -> tuple[int, int]:
    """Objects that have had no row for longer than any publish takes from their last byte to its commit."""
    grace_s = max(registry.settings.grace_hours * 3600.0, _STRAY_S)
    count = size = 0
    old = [stored async for stored in registry.store.objects() if stored.age_s > grace_s]
    for i in range(0, len(old), _BATCH):
        part = old[i : i + _BATCH]
        known = await registry.database.read(known_keys, [stored.key for stored in part])
        for stored in part:
            if stored.key not in known:
                count += 1
                size += stored.size
                if not dry_run:
                    await registry.store.delete(stored.key)
    return count, size


async def _uploads(registry: Registry, dry_run: bool) -> int:
    past = await registry.database.read(_expired)
    if not dry_run:
        for upload in past:
            await registry.vault.abandon(upload)
    return len(past)


def _expired(db: Connection) -> list[str]:
    return list(db.scalars(select(uploads.c.id).where(uploads.c.expires_at <= now())))
