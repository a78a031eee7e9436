"""The index: who is cancelled while the database works, and who asks it from many sides at once."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest
from sqlalchemy import insert

from neuraverse.registry.database import Database
from neuraverse.registry.index import counts
from neuraverse.registry.tables import now, orgs


def add(db, name, begun=None, go=None):
    """Enter an organisation; 7. Says when it has begun, and waits to go on."""
    if begun is not None:
        begun.set()
        assert go.wait(20)
    db.execute(insert(orgs), {"name": name, "created_at": now()})
    return 7


def test_who_is_cancelled_while_it_is_committed_learns_how_it_ended(plain):
    """Else a publish would remove the files of a version that is visible."""

    async def main():
        begun, go, learnt = threading.Event(), threading.Event(), []

        async def publish(database):
            learnt.append(await database.write(add, "acme", begun, go))
            await asyncio.sleep(0)
            learnt.append("went on")

        async with opened(plain) as database:
            task = asyncio.create_task(publish(database))
            await asyncio.to_thread(begun.wait, 20)
            for _ in range(2):
                task.cancel()
                await asyncio.sleep(0.02)
            assert not task.done()
            go.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert learnt == [7]
            assert (await database.read(counts))["orgs"] == 1

    asyncio.run(main())


@contextlib.asynccontextmanager
async def opened(settings):
    database = Database(settings.database_url)
    await database.open()
    yield database
    await database.close()


@pytest.mark.storages
def test_what_raises_leaves_nothing(settings):
    def fail(db):
        add(db, "acme")
        raise ValueError("no")

    async def main():
        async with opened(settings) as database:
            with pytest.raises(ValueError, match="no"):
                await database.write(fail)
            assert (await database.read(counts))["orgs"] == 0
            await database.write(add, "acme")
            assert (await database.read(counts))["orgs"] == 1

    asyncio.run(main())


@pytest.mark.storages
def test_many_writers_and_readers_at_once(settings):
    async def main():
        async with opened(settings) as database:
            writing = [database.write(add, f"org-{i}") for i in range(40)]
            found = await asyncio.gather(*writing, *(database.read(counts) for _ in range(40)))
            assert found[:40] == [7] * 40
            assert (await database.read(counts))["orgs"] == 40

    asyncio.run(main())


def test_what_is_closed_is_not_opened_again_by_who_comes_late(plain):
    """The lock of the folder may be another's by then."""

    async def main():
        async with opened(plain) as database:
            pass
        with pytest.raises(AssertionError, match="not open"):
            await database.write(add, "acme")

    asyncio.run(main())
