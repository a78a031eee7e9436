"""The schema's steps, up and down, on both databases; and databases that this release cannot serve."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text
from starlette.testclient import TestClient

from neuraverse.errors import ConfigError, StorageError
from neuraverse.registry import create_app, tables
from neuraverse.registry.database import Database
from tests.registry.test_publish import TAR, parcel

FIRST = {
    *("aliases", "events", "lineage", "manifests", "orgs"),
    *("publisher_keys", "skills", "version_files", "versions"),
}
"""Tables of the first release."""


async def looked_at(settings, look):
    """What `look(connection)` finds in the database."""
    database = Database(settings.database_url)
    database._connect()  # as it is: opening it would bring it up to date
    try:
        return await database.read(look)
    finally:
        await database.close()


def migrate(settings, revision):
    asyncio.run(Database(settings.database_url).migrate(revision))


@pytest.mark.storages
def test_the_steps_lead_to_the_tables_as_they_are_declared(settings):
    def differences(connection):
        return compare_metadata(MigrationContext.configure(connection), tables.metadata)

    migrate(settings, "head")
    assert asyncio.run(looked_at(settings, differences)) == []


@pytest.mark.storages
def test_down_and_up_again(settings):
    for revision in ("head", "0001", "head", "base", "head"):
        migrate(settings, revision)
        names = set(asyncio.run(looked_at(settings, lambda c: inspect(c).get_table_names())))
        expected = {
            "head": set(tables.metadata.tables),
            "0001": FIRST,
            "base": set(),
        }[revision]
        assert names - {"alembic_version"} == expected, revision


@pytest.mark.storages
def test_skills_survive_a_step_down_and_up(settings, tiny_skill, publisher, state):
    with TestClient(create_app(settings)) as api:
        assert api.post("/v1/skills", content=parcel(tiny_skill, publisher), headers=TAR).status_code == 201
        state(api, "alias", alias="stable", version="1.0.0")
    migrate(settings, "0001")
    migrate(settings, "head")
    with TestClient(create_app(settings)) as api:
        assert api.get("/v1/skills/acme/weld-seam/stable").json()["digest"] == tiny_skill.digest
        (found,) = api.get("/v1/skills?q=seam&tag=welding").json()["skills"]
        assert found["digest"] == tiny_skill.digest
        assert [e["type"] for e in api.get("/v1/events?after=0").json()["events"]] == ["published", "alias"]


def test_a_registry_of_the_first_release_is_served(plain, data_dir, tiny_skill):
    """It has no mark of its schema, and its blobs are named by their digest alone."""
    migrate(plain, "0001")
    entries = tiny_skill.manifest.files
    with sqlite3.connect(data_dir / "registry.db") as db:
        db.execute("DROP TABLE alembic_version")
        db.execute("INSERT INTO orgs VALUES (1, 'acme', '2026-01-01T00:00:00.000Z')")
        db.execute("INSERT INTO skills VALUES (1, 1, 'acme/weld-seam', '2026-01-01T00:00:00.000Z')")
        digest, data = tiny_skill.digest, tiny_skill.read("manifest.json")
        db.execute(
            "INSERT INTO versions VALUES"
            " (1, 1, '1.0.0', 0, '010101~', ?, 'f', 'i', 't', '', 'r', 1, 1, 1, 's', '')",
            (digest,),
        )
        db.execute("INSERT INTO manifests VALUES (1, ?, ?)", (data, tiny_skill.read("signature.json")))
        for name, entry in entries.items():
            db.execute("INSERT INTO version_files VALUES (1, ?, ?, ?)", (name, entry.sha256, entry.size))
            folder = data_dir / "blobs" / "sha256" / entry.sha256[:2]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / entry.sha256).write_bytes(tiny_skill.read(name))
    with TestClient(create_app(plain)) as api:
        assert api.get("/v1/skills/acme/weld-seam/latest").json()["digest"] == digest
        assert api.get("/v1/skills?q=weld&license=apache-2.0").json()["skills"][0]["digest"] == digest
        for name, entry in entries.items():
            assert api.get(f"/v1/blobs/{entry.sha256}").content == tiny_skill.read(name)


@pytest.mark.storages
def test_a_newer_schema_is_refused(settings):
    migrate(settings, "head")

    def age(connection):
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        connection.commit()

    asyncio.run(looked_at(settings, age))
    with pytest.raises(StorageError, match=r"has the schema 9999; this release knows 0005 - use the release"):
        asyncio.run(Database(settings.database_url).open())


def test_a_database_that_is_locked(plain, data_dir, monkeypatch):
    migrate(plain, "head")
    monkeypatch.setattr("neuraverse.registry.database.BUSY_S", 0.2)
    with sqlite3.connect(data_dir / "registry.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StorageError, match="locked"):
            asyncio.run(Database(plain.database_url).open())


def test_a_locked_database_is_told_to_clients(local_api, data_dir, monkeypatch, problem):
    with sqlite3.connect(data_dir / "registry.db", isolation_level=None, timeout=0.2) as other:
        other.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr("neuraverse.registry.database.BUSY_S", 0.2)
        assert local_api.get("/v1/skills").status_code == 200  # readers do not mind
        other.execute("ROLLBACK")


@pytest.mark.parametrize(
    ("url", "error", "says"),
    [
        ("mysql://x/y", ConfigError, "neither sqlite"),
        ("nonsense", ConfigError, "neither sqlite"),
        ("postgresql://nobody@127.0.0.1:1/nothing", StorageError, "check that PostgreSQL runs there"),
    ],
)
def test_databases_that_cannot_be(url, error, says):
    with pytest.raises(error, match=says):
        asyncio.run(Database(url).open())


def test_a_password_is_in_no_message():
    with pytest.raises(StorageError) as caught:
        asyncio.run(Database("postgresql://robot:hush-hush@127.0.0.1:1/x").open())
    assert "hush-hush" not in str(caught.value)
