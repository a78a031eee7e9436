"""The scrubber: reads every byte that versions refer to, and takes what has rotted out of the way.

A rotten blob goes into quarantine and is marked as lost, so that nobody is served wrong bytes. Publishing the
same skill again, or restoring a backup, heals it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row, func, select, update

from neuraverse.manifest import SkillManifest, digest_of
from neuraverse.registry.tables import blobs, lineage, manifests, skills, version_files, versions

if TYPE_CHECKING:
    from neuraverse.registry.service import Registry

_BATCH = 100


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that is wrong.

    Attributes:
        kind: ``missing``, ``rotten``, ``manifest`` or ``row``.
        what: Digest of the blob, or the version.
        detail: As a sentence.
        versions: Versions that need it, as ``org/skill@version``.
    """

    kind: str
    what: str
    detail: str
    versions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was looked at, and what is wrong."""

    blobs: int
    bytes: int
    versions: int
    faults: tuple[Fault, ...]


async def check(
    registry: Registry,
    *,
    repair: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Checked:
    """Read everything once.

    Args:
        registry: An open one; a server may be running on it.
        repair: Take rotten blobs out of the way, and take back those that were lost and are whole.
        progress: Called with the blobs that are done and in total.

    Raises:
        StorageError: The store fails.
    """
    total = await registry.database.read(_count)
    faults: list[Fault] = []
    count = size = 0
    after = ""
    while True:
        rows = await registry.database.read(_some, after)
        if not rows:
            break
        for row in rows:
            detail = await _wrong(registry, row.key, row.sha256, row.size)
            if detail is None and row.lost and repair:
                await registry.database.write(_mark, row.sha256, lost=False)
            if detail is not None and await registry.database.read(_is_at, row.sha256, row.key):
                kind = "missing" if detail.startswith("there is no") else "rotten"
                users = await registry.database.read(_users, row.sha256)
                faults.append(Fault(kind=kind, what=row.sha256, detail=detail, versions=users))
                if repair:
                    await registry.database.write(_mark, row.sha256, lost=True)
                    if kind == "rotten":
                        await registry.store.quarantine(row.key)
            count += 1
            size += row.size
            progress(count, total)
        after = rows[-1].sha256
    looked, wrong = await _documents(registry)
    return Checked(blobs=count, bytes=size, versions=looked, faults=(*faults, *wrong))


async def _wrong(registry: Registry, key: str, sha256: str, size: int) -> str | None:
    """What is wrong with an object, or None."""
    found = await registry.store.size(key)
    if found is None:
        return f"there is no {key} in {registry.store.name}"
    if found != size:
        return f"{key} has {found} bytes, not {size}"
    actual = hashlib.sha256()
    async for chunk in registry.store.read(key, 0, size):
        actual.update(chunk)
    return None if actual.hexdigest() == sha256 else f"{key} has the SHA-256 {actual.hexdigest()}"


def _count(db: Connection) -> int:
    return int(db.scalar(select(func.count()).select_from(blobs)) or 0)


def _some(db: Connection, after: str) -> list[Row[Any]]:
    """The next blobs in the order of their digests."""
    return list(
        db.execute(select(blobs).where(blobs.c.sha256 > after).order_by(blobs.c.sha256).limit(_BATCH))
    )


def _is_at(db: Connection, sha256: str, key: str) -> bool:
    """Whether the row is as it was read; the collector or a new upload may have come in between."""
    return db.scalar(select(blobs.c.key).where(blobs.c.sha256 == sha256)) == key


def _mark(db: Connection, sha256: str, *, lost: bool) -> None:
    db.execute(update(blobs).where(blobs.c.sha256 == sha256).values(lost=lost))


def _users(db: Connection, sha256: str) -> tuple[str, ...]:
    query = select(skills.c.name, versions.c.version).join_from(skills, versions).join(version_files)
    rows = db.execute(query.where(version_files.c.sha256 == sha256).limit(20))
    return tuple(f"{row.name}@{row.version}" for row in rows)


async def _documents(registry: Registry) -> tuple[int, list[Fault]]:
    """Every manifest against the rows that were made from it."""
    faults: list[Fault] = []
    count, after = 0, 0
    while True:
        looked, wrong, after = await registry.database.read(_compared, after)
        if not looked:
            return count, faults
        faults += wrong
        count += looked


def _compared(db: Connection, after: int) -> tuple[int, list[Fault], int]:
    """The next versions: how many, what is wrong with them, and the id of the last."""
    query = select(versions.c.id, versions.c.version, versions.c.digest, skills.c.name, manifests.c.manifest)
    query = query.join_from(versions, skills).join(manifests).where(versions.c.id > after)
    faults, count = [], 0
    for row in list(db.execute(query.order_by(versions.c.id).limit(_BATCH))):
        ref = f"{row.name}@{row.version}"
        wanted = version_files.c.version_id == row.id
        files = {f.name: f.sha256 for f in db.execute(select(version_files).where(wanted))}
        up = select(versions.c.digest).join(lineage, lineage.c.parent_id == versions.c.id)
        parents = set(db.scalars(up.where(lineage.c.child_id == row.id)))
        faults += [
            Fault(kind="manifest", what=ref, detail=detail)
            for detail in _differs(bytes(row.manifest), row.digest, ref, files, parents)
        ]
        count, after = count + 1, row.id
    return count, faults, after


def _differs(data: bytes, digest: str, ref: str, files: dict[str, str], parents: set[str]) -> list[str]:
    if digest_of(data) != digest:
        return [f"the manifest of {ref} has the digest {digest_of(data)}, not {digest}"]
    manifest = SkillManifest.parse(data)
    found = []
    if manifest.ref != ref:
        found.append(f"the manifest of {ref} calls itself {manifest.ref}")
    if {name: entry.sha256 for name, entry in manifest.files.items()} != files:
        found.append(f"the files of {ref} in the index are not those of its manifest")
    if set(manifest.parents) != parents:
        found.append(f"the parents of {ref} in the index are not those of its manifest")
    return found
