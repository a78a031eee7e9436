"""The index: what is in a registry, as tables for SQLite and PostgreSQL.

`migrations` makes and changes them; a test holds both equal. Times are UTC, ISO 8601, as text, which sorts as
time does. The order of events is their id, never their time: clocks jump.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
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
    false,
    func,
    insert,
    select,
)

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pk",
        "fk": "%(table_name)s_%(column_0_name)s_fk",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s",
    }
)

ACTIVE, YANKED, REVOKED = "active", "yanked", "revoked"
PUBLIC, NETWORK, PRIVATE = "public", "network", "private"


def text(length: int) -> String:
    """Text that sorts by code point on every database, whatever its locale."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


# SQLite gives out ids only for a column that is exactly INTEGER.
_ID = BigInteger().with_variant(Integer(), "sqlite")

# One row: which registry this is. Statements and cursors of another one do not count here.
registry = Table(
    "registry",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("created_at", String(32), nullable=False),
    # Cursors carry it; a restored registry has a new one, so that readers look anew.
    Column("feed", String(8), nullable=False, server_default="00000000"),
    # Counts every change of who may see or do what; what a process remembers of it holds for one value.
    Column("rights", BigInteger, nullable=False, server_default="0"),
)

orgs = Table(
    "orgs",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("name", text(64), nullable=False, unique=True),
    Column("created_at", String(32), nullable=False),
    # Whether it has members. One without belongs to whoever has its keys, and only an open registry has such.
    Column("managed", Boolean, nullable=False, server_default=false()),
    Column("visibility", String(16), nullable=False, server_default=PUBLIC),  # of its new skills
    Column("protected", JSON, nullable=False, server_default='["stable"]'),  # aliases that maintainers move
    # Limits; null is the registry's own.
    Column("quota_bytes", BigInteger, nullable=True),
    Column("quota_versions", BigInteger, nullable=True),
    Column("quota_requests", Integer, nullable=True),  # a minute
    Column("quota_events", Integer, nullable=True),  # an hour
    Column("used_bytes", BigInteger, nullable=False, server_default="0"),
    Column("used_versions", BigInteger, nullable=False, server_default="0"),
)

# People and robots. A robot belongs to one organisation, which is in its name: org/robot.
accounts = Table(
    "accounts",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("kind", String(8), nullable=False),  # person or robot
    Column("name", text(129), nullable=False, unique=True),
    Column("operator", Boolean, nullable=False, server_default=false()),  # may make organisations
    Column("created_at", String(32), nullable=False),
    Column("disabled_at", String(32), nullable=True),
)

members = Table(
    "members",
    metadata,
    Column("org_id", ForeignKey("orgs.id"), primary_key=True),
    Column("account_id", ForeignKey("accounts.id"), primary_key=True, index=True),
    Column("role", String(16), nullable=False),
    Column("created_at", String(32), nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),  # SHA-256 of the token, which is kept nowhere
    Column("account_id", ForeignKey("accounts.id"), nullable=False, index=True),
    Column("org_id", ForeignKey("orgs.id"), nullable=True),  # the only one that it may act in
    Column("scopes", JSON, nullable=False),
    Column("label", String(100), nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("expires_at", String(32), nullable=False),
    Column("revoked_at", String(32), nullable=True),
)

# Codes that make somebody a member, or the registry's operator, once.
invitations = Table(
    "invitations",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),
    # Neither of both: to operate the registry.
    Column("org_id", ForeignKey("orgs.id"), nullable=True, index=True),
    Column("account_id", ForeignKey("accounts.id"), nullable=True),  # given back to who lost its tokens
    Column("role", String(16), nullable=False),
    Column("created_by", ForeignKey("accounts.id"), nullable=True),
    Column("created_at", String(32), nullable=False),
    Column("expires_at", String(32), nullable=False),
    Column("used_at", String(32), nullable=True),
    Column("used_by", ForeignKey("accounts.id"), nullable=True),
)

publisher_keys = Table(
    "publisher_keys",
    metadata,
    Column("org_id", ForeignKey("orgs.id"), primary_key=True),
    Column("fingerprint", String(80), primary_key=True),
    Column("pem", String, nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("revoked_at", String(32), nullable=True),  # signs nothing new; what it signed stays
)

# Who did what. Only ever inserted into: triggers refuse everything else.
audit = Table(
    "audit",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=False),  # of `next_id`
    Column("at", String(32), nullable=False),
    Column("actor", String(129), nullable=False),  # an account's name; empty is nobody who signed in
    Column("token", String(16), nullable=False),
    Column("org_id", ForeignKey("orgs.id"), nullable=True),
    Column("action", String(32), nullable=False),
    Column("target", String(300), nullable=False),
    Column("data", JSON, nullable=False),
    Index("audit_by_org", "org_id", "id"),
)

skills = Table(
    "skills",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("org_id", ForeignKey("orgs.id"), nullable=False, index=True),
    Column("name", text(129), nullable=False, unique=True),  # org/skill
    Column("created_at", String(32), nullable=False),
    # How often aliases, states or deprecation have changed; a statement names the next number.
    Column("serial", Integer, nullable=False, server_default="0"),
    Column("visibility", String(16), nullable=False, server_default=PUBLIC),
    Column("deprecated", String, nullable=True),  # why, as a sentence
    Column("successor", String(129), nullable=True),  # org/skill
)

versions = Table(
    "versions",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("skill_id", ForeignKey("skills.id"), nullable=False),
    Column("version", String(128), nullable=False),
    Column("prerelease", Boolean, nullable=False),
    Column("order_key", text(512), nullable=False),
    Column("digest", String(71), nullable=False, unique=True),  # sha256:<hex> of the manifest
    Column("publisher", String(80), nullable=False),
    Column("interface", String(71), nullable=False, index=True),
    Column("title", String, nullable=False),
    Column("description", String, nullable=False),
    Column("robot", String, nullable=False),
    Column("rate", Float, nullable=False),
    Column("lower", Float, nullable=False),
    Column("n", BigInteger, nullable=False),
    # What robots report from the field, of all of them; see `field`.
    Column("field_n", BigInteger, nullable=False, server_default="0"),
    Column("field_successes", BigInteger, nullable=False, server_default="0"),
    Column("facets", JSON, nullable=False),  # what a search may narrow by and no column tells, see `listing`
    Column("created_at", String(32), nullable=False),
    Column("state", String(16), nullable=False, server_default=ACTIVE),
    Column("reason", String, nullable=False, server_default=""),
    UniqueConstraint("skill_id", "version"),
    Index("versions_by_order", "skill_id", "prerelease", "order_key"),
)

# A skill as a search finds it: its latest version, and its place among those of its scope; see `listing`.
listings = Table(
    "listings",
    metadata,
    Column("skill_id", ForeignKey("skills.id"), primary_key=True),
    Column("version_id", ForeignKey("versions.id"), nullable=False),
    Column("scope", BigInteger, nullable=False),  # who may find it
    Column("place", Integer, nullable=False),  # 0, 1, 2 and so on, without gaps
    Column("rank", BigInteger, nullable=False),  # less is better
    UniqueConstraint("scope", "place"),
    UniqueConstraint("scope", "rank"),
)

# The inverted index: which places of a block have a term.
postings = Table(
    "postings",
    metadata,
    Column("scope", BigInteger, primary_key=True, autoincrement=False),
    Column("term", BigInteger, primary_key=True, autoincrement=False),
    Column("block", Integer, primary_key=True, autoincrement=False),
    Column("places", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

# What stands at each place of a shelf: rank, skill and interface.
standings = Table(
    "standings",
    metadata,
    Column("scope", BigInteger, primary_key=True, autoincrement=False),
    Column("shelf", Integer, primary_key=True, autoincrement=False),
    Column("stamp", BigInteger, nullable=False, server_default="0"),  # of the scope's change that wrote it
    Column("places", LargeBinary, nullable=False),
    Index("standings_by_stamp", "scope", "stamp"),
)

# How many places each scope has, and the stamp of its last change: stamps only grow.
rankings = Table(
    "rankings",
    metadata,
    Column("scope", BigInteger, primary_key=True, autoincrement=False),
    Column("size", Integer, nullable=False),
    Column("stamp", BigInteger, nullable=False),
)

# Each interface that a version has, so that a robot's offer is held against each once.
interfaces = Table(
    "interfaces",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("digest", String(71), nullable=False, unique=True),
    Column("document", JSON, nullable=False),
)

# Read only when one skill is fetched, so kept out of the rows that lists walk over.
manifests = Table(
    "manifests",
    metadata,
    Column("version_id", ForeignKey("versions.id"), primary_key=True),
    Column("manifest", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
)

# What is in the store. A key is never used twice, so that whoever removes one cannot hit a later upload.
blobs = Table(
    "blobs",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("key", String(200), nullable=False, unique=True),
    Column("created_at", String(32), nullable=False),
    Column("lease_until", String(32), nullable=False, index=True),  # kept that long without a version
    Column("lost", Boolean, nullable=False, server_default=false()),  # the scrubber found it rotten or gone
)

# Which blobs a version holds on to.
version_files = Table(
    "version_files",
    metadata,
    Column("version_id", ForeignKey("versions.id"), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("sha256", ForeignKey("blobs.sha256"), nullable=False, index=True),
    Column("size", BigInteger, nullable=False),
)

# What an organisation has in the store, for its quota and against others' eyes: nobody else learns from an
# upload whether a blob was here before. Those without an end are held by a version.
holdings = Table(
    "holdings",
    metadata,
    Column("holder", text(64), primary_key=True),  # an organisation's name; empty is anybody's
    Column("sha256", String(64), primary_key=True, index=True),
    Column("size", BigInteger, nullable=False),
    Column("until", String(32), nullable=True, index=True),
)

uploads = Table(
    "uploads",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("holder", text(64), nullable=False, server_default=""),
    Column("sha256", String(64), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("expires_at", String(32), nullable=False, index=True),
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
    Column("alias", text(64), primary_key=True),
    Column("version_id", ForeignKey("versions.id"), nullable=False),
    Column("updated_at", String(32), nullable=False),
)

# Only ever inserted into. Each row tells the whole event, so that later changes cannot rewrite the past.
events = Table(
    "events",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=False),  # of `next_id`
    Column("org_id", ForeignKey("orgs.id"), nullable=False),
    Column("skill_id", ForeignKey("skills.id"), nullable=True),
    Column("type", String(32), nullable=False),
    Column("name", String(129), nullable=False, index=True),
    Column("version", String(128), nullable=False),
    Column("digest", String(71), nullable=False),
    Column("at", String(32), nullable=False),
    Column("by", String(80), nullable=False, server_default=""),  # fingerprint of the key that signed
    Column("data", JSON, nullable=False),
    Index("events_by_org", "org_id", "id"),
    Index("events_by_skill", "skill_id", "id"),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("org_id", ForeignKey("orgs.id"), nullable=False, index=True),
    Column("url", String(2000), nullable=False),
    Column("secret", String(64), nullable=False),  # it signs with it, so it has to keep it
    Column("filters", JSON, nullable=False),
    Column("cursor", BigInteger, nullable=False),  # the last event that was looked at
    Column("attempts", Integer, nullable=False, server_default="0"),  # at the event behind the cursor
    Column("next_at", String(32), nullable=False, server_default=""),
    Column("error", String(300), nullable=False, server_default=""),
    Column("lease_until", String(32), nullable=False, server_default=""),  # a process works on it until then
    Column("disabled_at", String(32), nullable=True),  # and `error` says why
    Column("created_by", ForeignKey("accounts.id"), nullable=False),
    Column("created_at", String(32), nullable=False),
)

# Events that a webhook did not take, however often it was tried.
dead_letters = Table(
    "dead_letters",
    metadata,
    Column("webhook_id", ForeignKey("webhooks.id"), primary_key=True),
    Column("event_id", ForeignKey("events.id"), primary_key=True),
    Column("attempts", Integer, nullable=False),
    Column("error", String(300), nullable=False),
    Column("at", String(32), nullable=False),
    Column("again", Boolean, nullable=False, server_default=false()),  # somebody wants it tried once more
)

# What is known of a robot besides its account.
robots = Table(
    "robots",
    metadata,
    Column("robot_id", ForeignKey("accounts.id"), primary_key=True),
    Column("seen_at", String(32), nullable=False),  # when it last said something
    # How many field reports it has sent since then; an hour later it counts anew.
    Column("reports_from", String(32), nullable=False, server_default=""),
    Column("reports", Integer, nullable=False, server_default="0"),
)

# What each robot says that it runs, for each reference that it follows.
installs = Table(
    "installs",
    metadata,
    Column("robot_id", ForeignKey("accounts.id"), primary_key=True),
    Column("follows", String(200), primary_key=True),  # org/skill@alias
    Column("skill_id", ForeignKey("skills.id"), nullable=False, index=True),
    Column("version_id", ForeignKey("versions.id"), nullable=True),  # null: none
    Column("state", String(16), nullable=False),
    Column("reason", String(300), nullable=False),
    Column("since", String(32), nullable=False),
    # The version that it last refused or rolled back from, and when it last said so.
    Column("failed_id", ForeignKey("versions.id"), nullable=True),
    Column("failed_at", String(32), nullable=False, server_default=""),
    Column("reported_at", String(32), nullable=False),
)

# Which versions a robot has run: those that it may report on.
runs = Table(
    "runs",
    metadata,
    Column("robot_id", ForeignKey("accounts.id"), primary_key=True),
    Column("version_id", ForeignKey("versions.id"), primary_key=True, index=True),
    Column("first_at", String(32), nullable=False),
    Column("last_at", String(32), nullable=False),
)

# What a robot is kept at, whatever it follows means; without a version, at what it runs.
pins = Table(
    "pins",
    metadata,
    Column("robot_id", ForeignKey("accounts.id"), primary_key=True),
    Column("skill_id", ForeignKey("skills.id"), primary_key=True),
    Column("version_id", ForeignKey("versions.id"), nullable=True),
    Column("reason", String(300), nullable=False),
    Column("created_at", String(32), nullable=False),
)

# A version on its way to an organisation's robots, share by share.
rollouts = Table(
    "rollouts",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("org_id", ForeignKey("orgs.id"), nullable=False),  # whose robots
    Column("skill_id", ForeignKey("skills.id"), nullable=False, index=True),
    Column("which", String(128), nullable=False),  # the alias that they follow
    Column("target_id", ForeignKey("versions.id"), nullable=False),
    Column("baseline_id", ForeignKey("versions.id"), nullable=False),
    Column("stages", JSON, nullable=False),  # shares in percent
    Column("stage", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("threshold", Float, nullable=False),  # success that the field must show, or it goes back
    Column("episodes", Integer, nullable=False),  # of each stage, before it goes on; 0: by hand
    Column("field_n", BigInteger, nullable=False, server_default="0"),  # reported in this stage
    Column("field_successes", BigInteger, nullable=False, server_default="0"),
    Column("reason", String(300), nullable=False, server_default=""),
    Column("created_at", String(32), nullable=False),
    Column("changed_at", String(32), nullable=False),
    Index("rollouts_by_reference", "org_id", "skill_id", "which"),
)

# Sums of what a robot reported of a version on a body.
field = Table(
    "field",
    metadata,
    Column("version_id", ForeignKey("versions.id"), primary_key=True),
    Column("robot_id", ForeignKey("accounts.id"), primary_key=True),
    Column("body", String(71), primary_key=True),
    Column("episodes", BigInteger, nullable=False),
    Column("successes", BigInteger, nullable=False),
    Column("aborts", BigInteger, nullable=False),
    Column("errors", JSON, nullable=False),  # by name: unit, n, sum and greatest
    Column("software", JSON, nullable=False),
    Column("reports", Integer, nullable=False),
    Column("first_at", String(32), nullable=False),
    Column("last_at", String(32), nullable=False),
    Column("last_mark", String(64), nullable=False, server_default=""),  # SHA-256 of the report before
)


def add_row(db: Connection, table: Table, **values: Any) -> int:
    """Insert a row; its id."""
    key = db.execute(insert(table), values).inserted_primary_key
    assert key is not None
    return int(key[0])


def next_id(db: Connection, table: Table) -> int:
    """An id for a row of a table that only grows: the microsecond since 1970, or the next one after the last.

    Ids only grow, whatever the clock does, and those that somebody sees say nothing of how many there are in
    between. The transaction writes, so that nobody else takes the same.
    """
    last = int(db.scalar(select(func.max(table.c.id))) or 0)
    return max(last + 1, time.time_ns() // 1000)


def now(hours: float = 0.0) -> str:
    """This instant in UTC, or some hours from it, ISO 8601 with milliseconds."""
    moment = datetime.now(UTC) + timedelta(hours=hours)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
