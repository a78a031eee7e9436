"""The index: organisations, keys, skills, versions, aliases, lineage and the append-only event feed.

SQLite in WAL mode with ``synchronous=FULL``: a commit that returned survives a power cut. Writers take the
lock at once (``BEGIN IMMEDIATE``), so that what they read stays true until they commit. Everything but the
connection's set-up is plain SQLAlchemy Core. Times are UTC, ISO 8601, as text. The order of events is their
id, never their time: clocks jump.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    event,
)
from sqlalchemy.exc import DatabaseError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from neuraverse.errors import StorageError

metadata = MetaData()

orgs = Table(
    "orgs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("created_at", String(32), nullable=False),
)

publisher_keys = Table(
    "publisher_keys",
    metadata,
    Column("org_id", ForeignKey("orgs.id"), primary_key=True),
    Column("fingerprint", String(80), primary_key=True),
    Column("pem", String, nullable=False),
    Column("created_at", String(32), nullable=False),
)

skills = Table(
    "skills",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("org_id", ForeignKey("orgs.id"), nullable=False, index=True),
    Column("name", String(129), nullable=False, unique=True),  # org/skill
    Column("created_at", String(32), nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("skill_id", ForeignKey("skills.id"), nullable=False),
    Column("version", String(128), nullable=False),
    Column("prerelease", Boolean, nullable=False),
    Column("order_key", String(512), nullable=False),
    Column("digest", String(71), nullable=False, unique=True),  # sha256:<hex> of the manifest
    Column("publisher", String(80), nullable=False),
    Column("interface", String(71), nullable=False, index=True),
    Column("title", String, nullable=False),
    Column("description", String, nullable=False),
    Column("robot", String, nullable=False),
    Column("rate", Float, nullable=False),
    Column("lower", Float, nullable=False),
    Column("n", Integer, nullable=False),
    Column("search", String, nullable=False),  # lower-case words that a search may hit
    Column("created_at", String(32), nullable=False),
    UniqueConstraint("skill_id", "version"),
    Index("versions_by_order", "skill_id", "prerelease", "order_key"),
)

# Read only when one skill is fetched, so kept out of the rows that lists walk over.
manifests = Table(
    "manifests",
    metadata,
    Column("version_id", ForeignKey("versions.id"), primary_key=True),
    Column("manifest", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
)

# Which blobs a version holds on to.
version_files = Table(
    "version_files",
    metadata,
    Column("version_id", ForeignKey("versions.id"), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("sha256", String(64), nullable=False, index=True),
    Column("size", Integer, nullable=False),
)

lineage = Table(
    "lineage",
    metadata,
    Column("child_id", ForeignKey("versions.id"), primary_key=True),
    Column("parent_id", ForeignKey("versions.id"), primary_key=True, index=True),
)

aliases = Table(
    "aliases",
    metadata,
    Column("skill_id", ForeignKey("skills.id"), primary_key=True),
    Column("alias", String(64), primary_key=True),
    Column("version_id", ForeignKey("versions.id"), nullable=False),
    Column("updated_at", String(32), nullable=False),
)

# Only ever inserted into. Each row tells the whole event, so that later changes cannot rewrite the past.
events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("org_id", ForeignKey("orgs.id"), nullable=False),
    Column("type", String(32), nullable=False),
    Column("name", String(129), nullable=False),
    Column("version", String(128), nullable=False),
    Column("digest", String(71), nullable=False),
    Column("at", String(32), nullable=False),
    Column("data", JSON, nullable=False),
    sqlite_autoincrement=True,
)


def now() -> str:
    """This instant in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Database:
    """Connections to the index.

    Args:
        path: The SQLite file; created by `open`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._engine: AsyncEngine | None = None

    async def open(self) -> None:
        """Connect, and create what is missing.

        Raises:
            StorageError: The file cannot be used as a database.
        """
        engine = create_async_engine(f"sqlite+aiosqlite:///{self._path}", connect_args={"timeout": 10.0})
        event.listen(engine.sync_engine, "connect", _set_up)
        event.listen(engine.sync_engine, "begin", _begin)
        try:
            async with engine.connect() as connection:
                await connection.execution_options(write=True)
                await connection.run_sync(metadata.create_all)
                await connection.commit()
        except DatabaseError as error:
            await engine.dispose()
            raise StorageError(
                f"cannot use {self._path} as the registry's database: {error.orig}",
                remedy="check the disk and the folder's permissions, or restore the file from a backup",
            ) from error
        self._engine = engine

    async def close(self) -> None:
        """Close every connection."""
        if self._engine is not None:
            await self._engine.dispose()
            self._engine = None

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that sees one state of the database."""
        assert self._engine is not None, "the database is not open"
        async with self._engine.connect() as connection:
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that commits when the block ends, and rolls back when it raises."""
        assert self._engine is not None, "the database is not open"
        async with self._engine.connect() as connection:
            await connection.execution_options(write=True)
            async with connection.begin():
                yield connection


def _set_up(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # BEGIN is ours to say, in `_begin`
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA {pragma}")
        cursor.close()


def _begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
