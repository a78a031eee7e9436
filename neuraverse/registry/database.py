"""Connections to the index: SQLite in a file, or PostgreSQL.

SQLite runs in WAL mode with ``synchronous=FULL``: a commit that returned survives a power cut. Writers take
one lock at once (``BEGIN IMMEDIATE``; an advisory lock on PostgreSQL). So what they read stays true until
they commit, and events become visible in the order of their ids, from however many processes they come.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event, insert, inspect, make_url, select, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from neuraverse.errors import ConfigError, StorageError
from neuraverse.registry import tables

log = logging.getLogger("neuraverse.registry")
_LOCK = 0x6E657572  # the one advisory lock of writers; any number that nobody else uses
_CHANNEL = "neuraverse"
_RECONNECT_S = 2.0
BUSY_S = 10.0  # how long a writer waits for another


class Database:
    """The index.

    Args:
        url: ``sqlite:///path`` or ``postgresql://user@host/name``.

    Raises:
        ConfigError: It is neither.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
        except ArgumentError:
            raise _no_database() from None
        self.kind = parsed.get_backend_name()
        drivers = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
        if self.kind not in drivers:
            raise _no_database()
        self._url = parsed.set(drivername=drivers[self.kind])
        self.name = self._url.render_as_string(hide_password=True).replace(
            f"+{self._url.get_driver_name()}", ""
        )
        self.path = Path(self._url.database or "") if self.kind == "sqlite" else None
        self._engine: AsyncEngine | None = None
        self._listener: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock() if self.kind == "sqlite" else contextlib.nullcontext()
        self.registry_id = ""

    async def open(self, *, migrate: bool = True) -> None:
        """Connect, and bring the schema up to date.

        Args:
            migrate: False refuses an older schema instead.

        Raises:
            StorageError: The database cannot be used, or has a schema that this release does not know.
        """
        if self._engine is not None:
            return
        self._engine = self._connectable()
        try:
            async with self.write() as db:
                await db.run_sync(_migrate if migrate else _must_be_current)
                self.registry_id = await _identity(db)
        except StorageError:
            await self.close()
            raise
        except (SQLAlchemyError, OSError) as error:
            await self.close()
            raise self._unusable(error) from error

    def _connectable(self) -> AsyncEngine:
        if self.kind == "sqlite":
            engine = create_async_engine(self._url, connect_args={"timeout": BUSY_S}, pool_size=8)
            event.listen(engine.sync_engine, "connect", _set_up)
            event.listen(engine.sync_engine, "begin", _begin)
        else:
            arguments = {"timeout": 10.0, "command_timeout": 60.0}
            engine = create_async_engine(self._url, connect_args=arguments, pool_pre_ping=True, pool_size=8)
        return engine

    def _unusable(self, error: Exception) -> StorageError:
        reason = str(getattr(error, "orig", None) or error).partition("\n")[0]
        remedy = (
            "check the disk and the folder's permissions, or restore it from a backup"
            if self.kind == "sqlite"
            else "check that PostgreSQL runs there, and the name and the rights in the address"
        )
        return StorageError(f"cannot use {self.name} as the registry's database: {reason}", remedy=remedy)

    async def close(self) -> None:
        """Close every connection."""
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait([self._listener])
            self._listener = None
        if self._engine is not None:
            await self._engine.dispose()
            self._engine = None

    async def migrate(self, revision: str) -> None:
        """Go to another schema, up or down; ``head`` is that of this release, ``base`` an empty database.

        Raises:
            StorageError: The database cannot be used, or there is no such step.
        """
        engine = self._connectable()
        try:
            async with _writing(engine, self.kind) as db:
                await db.run_sync(_migrate, revision)
        except (SQLAlchemyError, OSError) as error:
            raise self._unusable(error) from error
        finally:
            await engine.dispose()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that sees one state of the database."""
        assert self._engine is not None, "the database is not open"
        async with self._engine.connect() as connection:
            if self.kind == "postgresql":
                await connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that commits when the block ends, and rolls back when it raises; one at a time."""
        assert self._engine is not None, "the database is not open"
        # SQLite lets writers poll for its lock; of this process they queue here, and nobody starves.
        async with self._turn, _writing(self._engine, self.kind) as connection:
            yield connection

    def listen(self, wake: Callable[[], None]) -> None:
        """Call `wake` when another process may have committed something.

        SQLite serves one process, so there is nothing to listen to. A notification may be lost, so readers
        look again by themselves now and then.
        """
        if self.kind == "postgresql":
            self._listener = asyncio.create_task(self._listening(wake))

    async def notify(self, db: AsyncConnection) -> None:
        """Let other processes know, once the transaction of `db` has committed."""
        if self.kind == "postgresql":
            await db.execute(text(f"NOTIFY {_CHANNEL}"))

    async def _listening(self, wake: Callable[[], None]) -> None:
        """Hold a connection of its own, which nobody resets, and make it anew when it is lost."""
        import asyncpg

        url = self._url.set(drivername="postgresql").render_as_string(hide_password=False)
        while True:
            try:
                connection = await asyncpg.connect(url, timeout=10.0)
                try:
                    await _heard(connection, wake)
                finally:
                    connection.terminate()
            except (asyncpg.PostgresError, OSError, TimeoutError) as error:
                log.warning("events of other processes come late: %s", error)
            await asyncio.sleep(_RECONNECT_S)


async def _heard(connection: Any, wake: Callable[[], None]) -> None:
    """Wake readers for every notification, until the connection is lost."""
    gone = asyncio.Event()
    connection.add_termination_listener(lambda *_: gone.set())
    await connection.add_listener(_CHANNEL, lambda *_: wake())
    wake()  # for what came in between
    await gone.wait()


@asynccontextmanager
async def _writing(engine: AsyncEngine, kind: str) -> AsyncIterator[AsyncConnection]:
    async with engine.connect() as connection:
        if kind == "sqlite":
            await connection.execution_options(write=True)
        async with connection.begin():
            if kind == "postgresql":
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            yield connection


def _no_database() -> ConfigError:
    return ConfigError(
        "the database is neither sqlite:///FILE nor postgresql://USER:PASSWORD@HOST/NAME",
        remedy="leave it out for SQLite in the data folder",
    )


async def _identity(db: AsyncConnection) -> str:
    found = await db.scalar(select(tables.registry.c.id))
    if found is None:
        found = str(uuid.uuid4())
        await db.execute(insert(tables.registry).values(id=found, created_at=tables.now()))
    return str(found)


def _migrate(connection: Connection, revision: str = "head") -> None:
    """Run the steps that are missing; the first release had tables and no mark of its schema."""
    from alembic import command
    from alembic.util import CommandError

    config = _alembic(connection)
    found = inspect(connection)
    if found.has_table("versions") and not found.has_table("alembic_version"):
        command.stamp(config, "0001")
    current, head = _revisions(connection)
    if revision == "head" and current == head:
        return
    try:
        if revision == "base" or (revision != "head" and current is not None and revision < current):
            command.downgrade(config, revision)
        else:
            command.upgrade(config, revision)
    except CommandError as error:
        raise _foreign(str(current), head) from error


def _must_be_current(connection: Connection) -> None:
    current, head = _revisions(connection)
    if current != head:
        raise _foreign(str(current), head)


def _foreign(current: str, head: str) -> StorageError:
    return StorageError(
        f"the registry's database has the schema {current}; this release knows {head}",
        remedy="use the release that served it last, or a newer one; `neuraverse serve` updates older ones",
    )


def _revisions(connection: Connection) -> tuple[str | None, str]:
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    head = ScriptDirectory.from_config(_alembic(connection)).get_current_head()
    return MigrationContext.configure(connection).get_current_revision(), str(head)


def _alembic(connection: Connection) -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _set_up(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # BEGIN is ours to say, in `_begin`
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        with contextlib.closing(connection.cursor()) as cursor:
            cursor.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
