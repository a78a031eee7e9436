"""Backups of a live registry, and a registry from a backup, on whichever database and store.

    DIR/blobs/sha256/ab/ab12…            every blob that a version holds; shared by all snapshots
    DIR/snapshots/<time>.jsonl           the rows of one moment: a table's name and a row in each line
    DIR/snapshots/<time>.json            what it is, with the SHA-256 of the rows; written last, so a backup
                                         that was cut does not look like one

The rows are read in one transaction. What a version holds is never removed, so its blobs can be copied after
it. A second backup into the same folder copies only what is new, and so does one that was cut.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sqlalchemy import Connection, Table, func, insert, select, text

from neuraverse.errors import IntegrityError, UsageError
from neuraverse.registry import tables
from neuraverse.registry.finding.listing import complete
from neuraverse.registry.index import counts
from neuraverse.registry.limits import MIB
from neuraverse.registry.stores import Incoming
from neuraverse.storage import disk_errors, read_regular, sync_folder, write_atomic

if TYPE_CHECKING:
    from neuraverse.registry.service import Registry

FORMAT = "neuraverse.backup/1"
SCHEMA = "0005"
# They expire, or follow from the others.
_LEFT_OUT = {"uploads", "listings", "postings", "standings", "rankings"}
# Those whose ids a sequence of PostgreSQL gives out.
_COUNTED = tables.orgs, tables.accounts, tables.skills, tables.versions, tables.interfaces
_MAX_NOTE_BYTES = 64 << 10
_BATCH = 500

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One backup.

    Attributes:
        format: `FORMAT`.
        registry: Id of the registry.
        schema: Schema of its rows.
        created: UTC, ISO 8601.
        head: Id of the newest event.
        versions: How many.
        blobs: How many.
        bytes: Of the blobs.
        rows_sha256: Hex digest of the file of rows.
    """

    format: str
    registry: str
    schema: str
    created: str
    head: int
    versions: int
    blobs: int
    bytes: int
    rows_sha256: str


async def backup(registry: Registry, folder: Path, progress: Progress = lambda done, total: None) -> Snapshot:
    """Add a snapshot to a folder of backups.

    Args:
        registry: An open one; a server may be running on it.
        folder: Where; made if missing.
        progress: Called with bytes that are done and in total.

    Raises:
        StorageError: A disk or the store fails; snapshots that were there are whole.
        IntegrityError: A blob of the registry has rotted; there is no new snapshot.
    """
    shelf = folder / "snapshots"
    with disk_errors("write", folder):
        shelf.mkdir(parents=True, exist_ok=True)
    created = tables.now()
    rows = shelf / f"{created.replace(':', '')}.jsonl"
    temporary = shelf / f".{rows.name}.tmp"
    with disk_errors("write", rows):
        try:
            with temporary.open("wb") as file:
                head, versions, held = await registry.database.read(_dump, file)
                file.flush()
                os.fsync(file.fileno())
            await _copy(registry, folder, held, progress)
            with temporary.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.replace(temporary, rows)
            sync_folder(shelf)
        finally:
            temporary.unlink(missing_ok=True)
    note = Snapshot(
        format=FORMAT,
        registry=registry.database.registry_id,
        schema=SCHEMA,
        created=created,
        head=head,
        versions=versions,
        blobs=len(held),
        bytes=sum(size for size, _ in held.values()),
        rows_sha256=digest,
    )
    write_atomic(rows.with_suffix(".json"), json.dumps(asdict(note), indent=2).encode() + b"\n")
    return note


def _dump(db: Connection, file: BinaryIO) -> tuple[int, int, dict[str, tuple[int, str]]]:
    """Write all rows of one moment.

    Returns:
        The newest event, the number of versions, and size and key of each blob that a version holds.
    """
    held: dict[str, tuple[int, str]] = {}
    used = set(db.scalars(select(tables.version_files.c.sha256).distinct()))
    head = int(db.scalar(select(func.max(tables.events.c.id))) or 0)
    versions = int(db.scalar(select(func.count()).select_from(tables.versions)) or 0)
    for table in tables.metadata.sorted_tables:
        if table.name in _LEFT_OUT:
            continue
        query = select(table).order_by(*table.primary_key.columns)
        for row in db.execute(query, execution_options={"yield_per": _BATCH}):
            plain = dict(row._mapping)
            if table is tables.blobs:
                if plain["sha256"] not in used:
                    continue
                held[plain["sha256"]] = (plain["size"], plain["key"])
            if table is tables.holdings and plain["until"] is not None:
                continue
            file.write(json.dumps([table.name, _plain(plain)]).encode() + b"\n")
    return head, versions, held


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
        for name, value in row.items()
    }


def _value(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"base64"}:
        return base64.b64decode(value["base64"])
    return value


async def _copy(
    registry: Registry, folder: Path, held: dict[str, tuple[int, str]], progress: Progress
) -> None:
    total, done = sum(size for size, _ in held.values()), 0
    folders: set[Path] = set()
    for sha256, (size, key) in held.items():
        target = _blob(folder, sha256)
        if not target.exists() or target.stat().st_size != size:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.tmp")
            actual = hashlib.sha256()
            with temporary.open("wb") as file:
                async for chunk in registry.store.read(key, 0, size):
                    actual.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            if actual.hexdigest() != sha256:
                temporary.unlink()
                raise IntegrityError(
                    f"the blob {sha256} of the registry has rotted",
                    remedy="run `neuraverse registry check`, and publish its skill again or restore a backup",
                )
            os.replace(temporary, target)
            folders.add(target.parent)
        done += size
        progress(done, total)
    for each in (*folders, folder / "blobs"):
        if each.exists():
            sync_folder(each)


def _blob(folder: Path, sha256: str) -> Path:
    return folder / "blobs" / "sha256" / sha256[:2] / sha256


def snapshots(folder: Path) -> dict[str, Snapshot]:
    """The backups in a folder by name, the oldest first.

    Raises:
        UsageError: There is none.
        IntegrityError: One is malformed.
    """
    found = {path.stem: _note(path) for path in sorted((folder / "snapshots").glob("[0-9]*.json"))}
    if not found:
        raise UsageError(f"{folder} holds no backup", remedy="make one with `neuraverse registry backup DIR`")
    return found


def _note(path: Path) -> Snapshot:
    try:
        note = Snapshot(**json.loads(read_regular(path, _MAX_NOTE_BYTES)))
    except (ValueError, TypeError) as error:
        raise IntegrityError(f"{path} is no note of a backup: {error}") from error
    if note.format != FORMAT or note.schema != SCHEMA:
        raise IntegrityError(
            f"{path} is a backup of the format {note.format!r} and schema {note.schema!r}",
            remedy="restore it with the release that made it, then serve it with this one",
        )
    return note


async def restore(
    registry: Registry, folder: Path, name: str | None = None, progress: Progress = lambda done, total: None
) -> Snapshot:
    """Fill an empty registry from a backup. All of it becomes visible at once, or nothing.

    Args:
        registry: An open one without skills, which no server is using.
        folder: Folder of backups.
        name: Which snapshot; the newest if None.
        progress: Called with bytes that are done and in total.

    Raises:
        UsageError: There is no such backup, or the registry holds skills.
        IntegrityError: The backup has rotted.
        StorageError: A disk or the store fails.
    """
    found = snapshots(folder)
    if name is not None and name not in found:
        raise UsageError(f"{folder} holds no snapshot {name!r}", remedy=f"there are {', '.join(found)}")
    name = name or list(found)[-1]
    note, rows = found[name], folder / "snapshots" / f"{name}.jsonl"
    with disk_errors("read", rows), rows.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != note.rows_sha256:
            raise IntegrityError(f"{rows} has rotted", remedy="restore another snapshot")
    if (await registry.database.read(counts))["orgs"]:
        raise UsageError(
            f"the registry at {registry.database.name} is not empty",
            remedy="restore into a new data folder or database",
        )
    keys = await _bring(registry, folder, rows, note.bytes, progress)
    await registry.database.write(_fill, rows, keys)
    registry.database.registry_id = note.registry
    return note


async def _bring(
    registry: Registry, folder: Path, rows: Path, total: int, progress: Progress
) -> dict[str, str]:
    """Copy the blobs into the store; their new keys by digest."""
    arrived: list[Incoming] = []
    done = 0
    for table, batch in _batches(rows):
        if table is not tables.blobs:
            continue
        for row in batch:
            path = _blob(folder, row["sha256"])
            if not path.is_file():
                raise IntegrityError(f"{path} is missing in the backup", remedy="restore another snapshot")
            one = await registry.store.receive(row["sha256"], _read(path))
            if one.sha256 != row["sha256"]:
                await registry.store.delete(one.key)
                raise IntegrityError(f"{path} has rotted", remedy="restore another snapshot")
            arrived.append(one)
            done += one.size
            progress(done, total)
    for i in range(0, len(arrived), _BATCH):
        await registry.store.seal(arrived[i : i + _BATCH])
    return {one.sha256: one.key for one in arrived}


async def _read(path: Path) -> AsyncIterator[bytes]:
    with disk_errors("read", path), path.open("rb") as file:
        while data := file.read(MIB):
            yield data


def _batches(rows: Path) -> Iterator[tuple[Table, list[dict[str, Any]]]]:
    """The rows, table by table."""
    batch: list[dict[str, Any]] = []
    current: Table | None = None
    with disk_errors("read", rows), rows.open("rb") as file:
        for line in file:
            name, row = json.loads(line)
            table = tables.metadata.tables.get(name)
            if table is None or not re.fullmatch("[a-z_]+", name):
                raise IntegrityError(f"{rows} holds rows of an unknown table {name!r}")
            if current is not None and (table is not current or len(batch) >= _BATCH):
                yield current, batch
                batch = []
            current = table
            batch.append({key: _value(value) for key, value in row.items()})
    if current is not None and batch:
        yield current, batch


def _fill(db: Connection, rows: Path, keys: dict[str, str]) -> None:
    """Enter all rows; the blobs have new keys, and the feed a new mark, so that its readers look anew."""
    db.execute(tables.registry.delete())
    for table, batch in _batches(rows):
        for row in batch:
            if table is tables.blobs:
                row |= {"key": keys[row["sha256"]], "lost": False}
            elif table is tables.registry:
                row |= {"feed": secrets.token_hex(4)}
        db.execute(insert(table), batch)
    if db.dialect.name == "postgresql":
        for table in _COUNTED:
            top = int(db.scalar(select(func.max(table.c.id))) or 0)
            sequence = f"pg_get_serial_sequence('{table.name}', 'id')"
            db.execute(text(f"SELECT setval({sequence}, :top)"), {"top": max(top, 1)})
    complete(db)
