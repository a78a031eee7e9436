"""The registry itself, without HTTP: every part of it, put together from the settings."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection

from neuraverse.errors import NeuraverseError
from neuraverse.registry import changes
from neuraverse.registry.collect import collect
from neuraverse.registry.config import Settings
from neuraverse.registry.database import Database
from neuraverse.registry.feed import Feed
from neuraverse.registry.finding.fitting import Fitting
from neuraverse.registry.finding.ranking import Rankings
from neuraverse.registry.publishing import Publisher, Submission
from neuraverse.registry.stores import Store
from neuraverse.registry.tenants.access import Access, Caller
from neuraverse.registry.vault import Vault
from neuraverse.registry.webhooks.delivering import Deliveries
from neuraverse.storage import disk_errors

log = logging.getLogger("neuraverse.registry")
P = ParamSpec("P")
T = TypeVar("T")


class Registry:
    """One registry.

    Args:
        settings: Where its database and its blobs are.

    Raises:
        ConfigError: An address of the settings is malformed.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings.database_url)
        self.store = open_store(settings)
        self.vault = Vault(self.database, self.store, settings)
        self.access = Access(self.database, is_open=settings.open)
        self.feed = Feed(self.database, self.access)
        self.deliveries = Deliveries(self.database, self.feed, settings)
        self.fitting = Fitting()
        self.rankings = Rankings()
        self._publisher = Publisher(self.database, self.vault, settings)
        self._collector: asyncio.Task[None] | None = None
        self._opened = False

    async def open(self, *, migrate: bool = True, serving: bool = False) -> None:
        """Make ready; calling it again does nothing.

        Args:
            migrate: Bring an older schema up to date; False refuses it.
            serving: Also listen to other processes, and collect garbage now and then.

        Raises:
            StorageError: The folder, the store or the database cannot be used.
        """
        if self._opened:
            return
        with disk_errors("use the data folder", self.settings.data):
            self.settings.data.mkdir(parents=True, exist_ok=True)
        await self.database.open(migrate=migrate)
        try:
            await self.store.open()
        except NeuraverseError:
            await self.database.close()
            raise
        self._opened = True
        if serving:
            await self.feed.open()
            await self.database.read(self.fitting.load)
            await self.database.read(self.rankings.load)
            await self.deliveries.open()
            self.database.listen(self.feed.wake)
            if self.settings.collect_hours:
                self._collector = asyncio.create_task(self._collecting())

    async def close(self) -> None:
        """Send waiting readers home and let go of everything."""
        await self.deliveries.close()
        await self.feed.close()
        if self._collector is not None:
            self._collector.cancel()
            await asyncio.wait([self._collector])
            self._collector = None
        if self._opened:
            await self.store.close()
            await self.database.close()
        self._opened = False

    async def _collecting(self) -> None:
        while True:
            await asyncio.sleep(self.settings.collect_hours * 3600.0)
            try:
                log.info("collected: %s", (await collect(self)).sentence)
            except Exception as error:  # whatever it is: tomorrow is another day
                log.error("collecting failed: %s", error)

    async def publish(
        self,
        caller: Caller,
        manifest: bytes,
        signature: bytes,
        public_key: bytes,
        files: Mapping[str, bytes],
        visibility: str | None = None,
    ) -> tuple[Submission, bool]:
        """Check a skill and make it visible; see `Publisher.publish`."""
        new, created = await self._publisher.publish(
            caller, manifest, signature, public_key, files, visibility
        )
        if created:
            self.feed.wake()
        return new, created

    async def change(self, caller: Caller, name: str, statement: str, signature: str) -> dict[str, Any]:
        """Carry out a signed statement; see `changes.apply`."""
        done = await self.database.write(changes.apply, caller, self.settings, name, statement, signature)
        self.feed.wake()
        return done

    async def rule(
        self, change: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `Database.write`, for what changes rights: they hold at once in this process, soon in others."""
        try:
            return await self.database.write(change, *args, **kwargs)
        finally:
            self._forget()

    def _forget(self) -> None:
        self.access.forget()
        self.feed.forget()


def open_store(settings: Settings) -> Store:
    """The store that the settings name.

    Raises:
        ConfigError: Its address is malformed.
    """
    if settings.blobs:
        from neuraverse.registry.stores.s3 import S3Store

        return S3Store(settings)
    from neuraverse.registry.stores.local import LocalStore

    return LocalStore(settings.data)


@contextlib.asynccontextmanager
async def opened(settings: Settings, *, migrate: bool = False) -> AsyncIterator[Registry]:
    """A registry for one task of an operator, beside a server or without one.

    Raises:
        StorageError: It cannot be used, or has an older schema.
    """
    registry = Registry(settings)
    await registry.open(migrate=migrate)
    try:
        yield registry
    finally:
        await registry.close()
