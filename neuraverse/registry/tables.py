"""The index: what is in a registry, as tables for SQLite and PostgreSQL.

`migrations` makes and changes them; a test holds both equal. Times are UTC, ISO 8601, as text, which sorts as
time does. The order of events is their id, never their time: clocks jump.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
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
)

orgs = Table(
    "orgs",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("name", text(64), nullable=False, unique=True),
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
    Column("id", _ID, primary_key=True),
    Column("org_id", ForeignKey("orgs.id"), nullable=False, index=True),
    Column("name", text(129), nullable=False, unique=True),  # org/skill
    Column("created_at", String(32), nullable=False),
    # How often aliases, states or deprecation have changed; a statement names the next number.
    Column("serial", Integer, nullable=False, server_default="0"),
    Column("visibility", String(16), nullable=False, server_default="public"),
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
    Column("search", String, nullable=False),  # lower-case words that a search may hit
    Column("created_at", String(32), nullable=False),
    Column("state", String(16), nullable=False, server_default=ACTIVE),
    Column("reason", String, nullable=False, server_default=""),
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

uploads = Table(
    "uploads",
    metadata,
    Column("id", String(32), primary_key=True),
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
    Column("id", _ID, primary_key=True),
    Column("org_id", ForeignKey("orgs.id"), nullable=False),
    Column("type", String(32), nullable=False),
    Column("name", String(129), nullable=False, index=True),
    Column("version", String(128), nullable=False),
    Column("digest", String(71), nullable=False),
    Column("at", String(32), nullable=False),
    Column("by", String(80), nullable=False, server_default=""),  # fingerprint of the key that signed
    Column("data", JSON, nullable=False),
    sqlite_autoincrement=True,
)


def now(hours: float = 0.0) -> str:
    """This instant in UTC, or some hours from it, ISO 8601 with milliseconds."""
    moment = datetime.now(UTC) + timedelta(hours=hours)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
