"""Connections to the index: SQLite in a file, or PostgreSQL.

What is asked of either is a plain function of a connection, run in one transaction: on SQLite in a thread, as
a call into SQLite is over before an event loop could be told of it; on PostgreSQL through asyncpg.

SQLite runs in WAL mode with ``synchronous=FULL``: a commit that returned survives a power cut. Writers take
one lock at once (``BEGIN IMMEDIATE``; an advisory lock on PostgreSQL). So what they read stays true until
they commit, and events become visible in the order of their ids, from however many processes they come.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import secrets
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy import URL, Connection, create_engine, event, insert, inspect, make_url, select, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from neuraverse.errors import ConfigError, StorageError
from neuraverse.registry import tables

log = logging.getLogger("neuraverse.registry")
P = ParamSpec("P")
T = TypeVar("T")
_LOCK = 0x6E657572  # the one advisory lock of writers; any number that nobody else uses
_CHANNEL = "neuraverse"
_RECONNECT_S = 2.0
_READERS = 4  # threads that read from SQLite; more would only wait for the same interpreter
_PRIVATE: dict[str, Any] = {"hide_parameters": True}  # errors are logged, and values may be secrets
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
        if self.kind not in ("sqlite", "postgresql"):
            raise _no_database()
        self._url = parsed.set(drivername=self.kind)
        self.name = self._url.render_as_string(hide_password=True)
        self.path = Path(self._url.database or "") if self.kind == "sqlite" else None
        self.shared = self.kind == "postgresql"  # with other server processes
        self._engine: _Engine | None = None
        self._listener: asyncio.Task[None] | None = None
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
        self._connect()
        try:
            self.registry_id = await self.write(_opened, migrate)
        except StorageError:
            await self.close()
            raise
        except (SQLAlchemyError, OSError) as error:
            await self.close()
            raise self._unusable(error) from error

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
            await self._engine.close()
            self._engine = None

    async def migrate(self, revision: str) -> None:
        """Go to another schema, up or down; ``head`` is that of this release, ``base`` an empty database.

        Raises:
            StorageError: The database cannot be used, or there is no such step.
        """
        self._connect()
        try:
            await self.write(_migrate, revision)
        except (SQLAlchemyError, OSError) as error:
            raise self._unusable(error) from error
        finally:
            await self.close()

    def _connect(self) -> None:
        self._engine = _Sqlite(self._url) if self.kind == "sqlite" else _Postgres(self._url)

    async def read(
        self, ask: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What a function finds in a transaction that sees one state of the database."""
        assert self._engine is not None, "the database is not open"
        return await self._engine.read(functools.partial(_call, ask, args, kwargs))

    async def write(
        self, change: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function in a transaction that commits when it returns, and rolls back when it raises.

        One at a time. A caller who is cancelled meanwhile still learns how it ended, and is cancelled then.
        """
        assert self._engine is not None, "the database is not open"
        return await _ended(self._engine.write(functools.partial(_call, change, args, kwargs)))

    def listen(self, wake: Callable[[], None]) -> None:
        """Call `wake` when another process may have committed something.

        SQLite serves one process, so there is nothing to listen to. A notification may be lost, so readers
        look again by themselves now and then.
        """
        if self.kind == "postgresql":
            self._listener = asyncio.create_task(self._listening(wake))

    async def _listening(self, wake: Callable[[], None]) -> None:
        """Hold a connection of its own, which nobody resets, and make it anew when it is lost."""
        import asyncpg

        url = self._url.render_as_string(hide_password=False)
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


def notify(db: Connection) -> None:
    """Let other processes know, once the transaction of `db` has committed."""
    if db.dialect.name == "postgresql":
        db.execute(text(f"NOTIFY {_CHANNEL}"))


def _call(ask: Callable[..., T], args: Any, kwargs: Any, db: Connection) -> T:
    return ask(db, *args, **kwargs)


class _Engine(Protocol):
    """Runs functions of a connection in transactions."""

    async def read(self, ask: Callable[[Connection], T]) -> T: ...

    def write(self, change: Callable[[Connection], T]) -> asyncio.Future[T]: ...

    async def close(self) -> None: ...


class _Sqlite:
    def __init__(self, url: URL) -> None:
        arguments = {"timeout": BUSY_S, "check_same_thread": False}
        self._engine = create_engine(url, connect_args=arguments, **_PRIVATE)
        event.listen(self._engine, "connect", _set_up)
        event.listen(self._engine, "begin", _begin)
        self._readers = ThreadPoolExecutor(_READERS, "read")
        # SQLite lets writers poll for its lock; of this process they queue here, and nobody starves.
        self._writer = ThreadPoolExecutor(1, "write")

    async def read(self, ask: Callable[[Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._run, ask, False)

    def write(self, change: Callable[[Connection], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._writer, self._run, change, True)

    def _run(self, ask: Callable[[Connection], T], write: bool) -> T:
        with self._engine.connect() as db:
            if not write:
                return ask(db)
            db.execution_options(write=True)
            with db.begin():
                return ask(db)

    async def close(self) -> None:
        for pool in (self._writer, self._readers):
            await asyncio.to_thread(pool.shutdown)
        self._engine.dispose()


class _Postgres:
    def __init__(self, url: URL) -> None:
        # Without a choice, no plan reads a whole table, rows of other tenants with it, where an index does.
        plans = {"enable_seqscan": "off", "jit": "off"}
        arguments = {"timeout": 10.0, "command_timeout": 60.0, "server_settings": plans}
        self._engine = create_async_engine(
            url.set(drivername="postgresql+asyncpg"),
            connect_args=arguments,
            pool_pre_ping=True,
            pool_size=8,
            **_PRIVATE,
        )

    async def read(self, ask: Callable[[Connection], T]) -> T:
        async with self._engine.connect() as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ")
            return await connection.run_sync(ask)

    def write(self, change: Callable[[Connection], T]) -> asyncio.Future[T]:
        return asyncio.ensure_future(self._write(change))

    async def _write(self, change: Callable[[Connection], T]) -> T:
        async with self._engine.begin() as connection:
            await connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            return await connection.run_sync(change)

    async def close(self) -> None:
        await self._engine.dispose()


async def _ended(work: asyncio.Future[T]) -> T:
    """Wait for it, however often the caller is cancelled; the cancellation takes effect afterwards."""
    task = asyncio.current_task()
    assert task is not None
    cancelled = False
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            cancelled = True
            task.uncancel()
    if cancelled:
        task.cancel()
    return work.result()


async def _heard(connection: Any, wake: Callable[[], None]) -> None:
    """Wake readers for every notification, until the connection is lost."""
    gone = asyncio.Event()
    connection.add_termination_listener(lambda *_: gone.set())
    await connection.add_listener(_CHANNEL, lambda *_: wake())
    wake()  # for what came in between
    await gone.wait()


def _no_database() -> ConfigError:
    return ConfigError(
        "the database is neither sqlite:///FILE nor postgresql://USER:PASSWORD@HOST/NAME",
        remedy="leave it out for SQLite in the data folder",
    )


def _opened(db: Connection, migrate: bool) -> str:
    """Bring the schema up to date, or see whether it is; the registry's id."""
    from neuraverse.registry.finding.listing import complete  # it imports from here

    if migrate:
        _migrate(db)
    else:
        _must_be_current(db)
    found = db.scalar(select(tables.registry.c.id))
    if found is None:
        found = str(uuid.uuid4())
        values = {"id": found, "created_at": tables.now(), "feed": secrets.token_hex(4)}
        db.execute(insert(tables.registry).values(**values))
    complete(db)
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
