"""Accounts, rights and quotas; an index to search; robots, roll-outs and reports; webhooks; an audit log."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_METADATA = sa.MetaData(
    naming_convention={
        "pk": "%(table_name)s_pk",
        "fk": "%(table_name)s_%(column_0_name)s_fk",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s",
    }
)


def _text(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


for _name in ("orgs", "skills", "versions", "events"):  # new tables refer to them
    sa.Table(_name, _METADATA, sa.Column("id", _ID, primary_key=True))

_NEW: list[sa.Table] = []
_NEW.append(
    sa.Table(
        "accounts",
        _METADATA,
        sa.Column("id", _ID, primary_key=True),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("name", _text(129), nullable=False, unique=True),
        sa.Column("operator", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("disabled_at", sa.String(32), nullable=True),
    )
)

_NEW.append(
    sa.Table(
        "members",
        _METADATA,
        sa.Column("org_id", sa.ForeignKey("orgs.id"), primary_key=True),
        sa.Column("account_id", sa.ForeignKey("accounts.id"), primary_key=True, index=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
    )
)

_NEW.append(
    sa.Table(
        "tokens",
        _METADATA,
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("hash", sa.String(64), nullable=False, unique=True),
        sa.Column("account_id", sa.ForeignKey("accounts.id"), nullable=False, index=True),
        sa.Column("org_id", sa.ForeignKey("orgs.id"), nullable=True),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("label", sa.String(100), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("expires_at", sa.String(32), nullable=False),
        sa.Column("revoked_at", sa.String(32), nullable=True),
    )
)

_NEW.append(
    sa.Table(
        "invitations",
        _METADATA,
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("hash", sa.String(64), nullable=False, unique=True),
        sa.Column("org_id", sa.ForeignKey("orgs.id"), nullable=True, index=True),
        sa.Column("account_id", sa.ForeignKey("accounts.id"), nullable=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created_by", sa.ForeignKey("accounts.id"), nullable=True),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("expires_at", sa.String(32), nullable=False),
        sa.Column("used_at", sa.String(32), nullable=True),
        sa.Column("used_by", sa.ForeignKey("accounts.id"), nullable=True),
    )
)

_NEW.append(
    sa.Table(
        "audit",
        _METADATA,
        sa.Column("id", _ID, primary_key=True, autoincrement=False),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("actor", sa.String(129), nullable=False),
        sa.Column("token", sa.String(16), nullable=False),
        sa.Column("org_id", sa.ForeignKey("orgs.id"), nullable=True),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("target", sa.String(300), nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sa.Index("audit_by_org", "org_id", "id"),
    )
)

_NEW.append(
    sa.Table(
        "listings",
        _METADATA,
        sa.Column("skill_id", sa.ForeignKey("skills.id"), primary_key=True),
        sa.Column("version_id", sa.ForeignKey("versions.id"), nullable=False),
        sa.Column("scope", sa.BigInteger, nullable=False),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("rank", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("scope", "place"),
        sa.UniqueConstraint("scope", "rank"),
    )
)

_NEW.append(
    sa.Table(
        "postings",
        _METADATA,
        sa.Column("scope", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("term", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("block", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("places", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
)

_NEW.append(
    sa.Table(
        "standings",
        _METADATA,
        sa.Column("scope", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("shelf", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("best", sa.BigInteger, nullable=False),
        sa.Column("places", sa.LargeBinary, nullable=False),
    )
)

_NEW.append(
    sa.Table(
        "interfaces",
        _METADATA,
        sa.Column("id", _ID, primary_key=True),
        sa.Column("digest", sa.String(71), nullable=False, unique=True),
        sa.Column("document", sa.JSON, nullable=False),
    )
)

_NEW.append(
    sa.Table(
        "holdings",
        _METADATA,
        sa.Column("holder", _text(64), primary_key=True),
        sa.Column("sha256", sa.String(64), primary_key=True, index=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("until", sa.String(32), nullable=True, index=True),
    )
)

_NEW.append(
    sa.Table(
        "webhooks",
        _METADATA,
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("org_id", sa.ForeignKey("orgs.id"), nullable=False, index=True),
        sa.Column("url", sa.String(2000), nullable=False),
        sa.Column("secret", sa.String(64), nullable=False),
        sa.Column("filters", sa.JSON, nullable=False),
        sa.Column("cursor", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("next_at", sa.String(32), nullable=False, server_default=""),
        sa.Column("error", sa.String(300), nullable=False, server_default=""),
        sa.Column("lease_until", sa.String(32), nullable=False, server_default=""),
        sa.Column("disabled_at", sa.String(32), nullable=True),
        sa.Column("created_by", sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
    )
)

_NEW.append(
    sa.Table(
        "dead_letters",
        _METADATA,
        sa.Column("webhook_id", sa.ForeignKey("webhooks.id"), primary_key=True),
        sa.Column("event_id", sa.ForeignKey("events.id"), primary_key=True),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("error", sa.String(300), nullable=False),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("again", sa.Boolean, nullable=False, server_default=sa.false()),
    )
)

_NEW.append(
    sa.Table(
        "robots",
        _METADATA,
        sa.Column("robot_id", sa.ForeignKey("accounts.id"), primary_key=True),
        sa.Column("seen_at", sa.String(32), nullable=False),
        sa.Column("reports_from", sa.String(32), nullable=False, server_default=""),
        sa.Column("reports", sa.Integer, nullable=False, server_default="0"),
    )
)

_NEW.append(
    sa.Table(
        "installs",
        _METADATA,
        sa.Column("robot_id", sa.ForeignKey("accounts.id"), primary_key=True),
        sa.Column("follows", sa.String(200), primary_key=True),
        sa.Column("skill_id", sa.ForeignKey("skills.id"), nullable=False, index=True),
        sa.Column("version_id", sa.ForeignKey("versions.id"), nullable=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(300), nullable=False),
        sa.Column("since", sa.String(32), nullable=False),
        sa.Column("failed_id", sa.ForeignKey("versions.id"), nullable=True),
        sa.Column("failed_at", sa.String(32), nullable=False, server_default=""),
        sa.Column("reported_at", sa.String(32), nullable=False),
    )
)

_NEW.append(
    sa.Table(
        "runs",
        _METADATA,
        sa.Column("robot_id", sa.ForeignKey("accounts.id"), primary_key=True),
        sa.Column("version_id", sa.ForeignKey("versions.id"), primary_key=True, index=True),
        sa.Column("first_at", sa.String(32), nullable=False),
        sa.Column("last_at", sa.String(32), nullable=False),
    )
)

_NEW.append(
    sa.Table(
        "pins",
        _METADATA,
        sa.Column("robot_id", sa.ForeignKey("accounts.id"), primary_key=True),
        sa.Column("skill_id", sa.ForeignKey("skills.id"), primary_key=True),
        sa.Column("version_id", sa.ForeignKey("versions.id"), nullable=True),
        sa.Column("reason", sa.String(300), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
    )
)

_NEW.append(
    sa.Table(
        "rollouts",
        _METADATA,
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("org_id", sa.ForeignKey("orgs.id"), nullable=False),
        sa.Column("skill_id", sa.ForeignKey("skills.id"), nullable=False, index=True),
        sa.Column("which", sa.String(128), nullable=False),
        sa.Column("target_id", sa.ForeignKey("versions.id"), nullable=False),
        sa.Column("baseline_id", sa.ForeignKey("versions.id"), nullable=False),
        sa.Column("stages", sa.JSON, nullable=False),
        sa.Column("stage", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("threshold", sa.Float, nullable=False),
        sa.Column("episodes", sa.Integer, nullable=False),
        sa.Column("field_n", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("field_successes", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("reason", sa.String(300), nullable=False, server_default=""),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("changed_at", sa.String(32), nullable=False),
        sa.Index("rollouts_by_reference", "org_id", "skill_id", "which"),
    )
)

_NEW.append(
    sa.Table(
        "field",
        _METADATA,
        sa.Column("version_id", sa.ForeignKey("versions.id"), primary_key=True),
        sa.Column("robot_id", sa.ForeignKey("accounts.id"), primary_key=True),
        sa.Column("body", sa.String(71), primary_key=True),
        sa.Column("episodes", sa.BigInteger, nullable=False),
        sa.Column("successes", sa.BigInteger, nullable=False),
        sa.Column("aborts", sa.BigInteger, nullable=False),
        sa.Column("errors", sa.JSON, nullable=False),
        sa.Column("software", sa.JSON, nullable=False),
        sa.Column("reports", sa.Integer, nullable=False),
        sa.Column("first_at", sa.String(32), nullable=False),
        sa.Column("last_at", sa.String(32), nullable=False),
    )
)

_COLUMNS = (
    ("registry", sa.Column("feed", sa.String(8), nullable=False, server_default="00000000")),
    ("registry", sa.Column("rights", sa.BigInteger, nullable=False, server_default="0")),
    ("orgs", sa.Column("managed", sa.Boolean, nullable=False, server_default=sa.false())),
    ("orgs", sa.Column("visibility", sa.String(16), nullable=False, server_default="public")),
    ("orgs", sa.Column("protected", sa.JSON, nullable=False, server_default='["stable"]')),
    ("orgs", sa.Column("quota_bytes", sa.BigInteger, nullable=True)),
    ("orgs", sa.Column("quota_versions", sa.BigInteger, nullable=True)),
    ("orgs", sa.Column("quota_requests", sa.Integer, nullable=True)),
    ("orgs", sa.Column("quota_events", sa.Integer, nullable=True)),
    ("orgs", sa.Column("used_bytes", sa.BigInteger, nullable=False, server_default="0")),
    ("orgs", sa.Column("used_versions", sa.BigInteger, nullable=False, server_default="0")),
    ("publisher_keys", sa.Column("revoked_at", sa.String(32), nullable=True)),
    ("uploads", sa.Column("holder", _text(64), nullable=False, server_default="")),
    ("versions", sa.Column("field_n", sa.BigInteger, nullable=False, server_default="0")),
    ("versions", sa.Column("field_successes", sa.BigInteger, nullable=False, server_default="0")),
    ("versions", sa.Column("facets", sa.JSON, nullable=False, server_default="{}")),
)
_GROWING = ("audit", "events")
"""Tables that only grow, whoever writes."""


def upgrade() -> None:
    """Add them. What can be found by which words is left to the server, which fills it when it starts."""
    for table, column in _COLUMNS:
        op.add_column(table, column._copy())
    op.execute("ALTER TABLE versions DROP COLUMN search")  # others refer to it: SQLite could not make it anew
    with op.batch_alter_table("events") as batch:
        batch.add_column(
            sa.Column("skill_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True)
        )
        batch.create_foreign_key("events_skill_id_fk", "skills", ["skill_id"], ["id"])
    op.create_index("events_by_org", "events", ["org_id", "id"])
    op.create_index("events_by_skill", "events", ["skill_id", "id"])
    op.execute("UPDATE events SET skill_id = (SELECT s.id FROM skills s WHERE s.name = events.name)")
    op.execute(sa.text("UPDATE registry SET feed = :feed").bindparams(feed=secrets.token_hex(4)))
    _METADATA.create_all(op.get_bind(), tables=_NEW)
    held = (
        "FROM version_files f JOIN versions v ON v.id = f.version_id JOIN skills s ON s.id = v.skill_id "
        "JOIN orgs o ON o.id = s.org_id"
    )
    op.execute(
        "INSERT INTO holdings (holder, sha256, size, until) "
        f"SELECT o.name, f.sha256, MIN(f.size), NULL {held} GROUP BY o.name, f.sha256"
    )
    op.execute(
        "UPDATE orgs SET "
        "used_bytes = COALESCE((SELECT SUM(h.size) FROM holdings h WHERE h.holder = orgs.name), 0), "
        "used_versions = (SELECT COUNT(*) FROM versions v JOIN skills s ON s.id = v.skill_id "
        "WHERE s.org_id = orgs.id)"
    )
    postgres = op.get_bind().dialect.name == "postgresql"
    if postgres:
        op.execute("ALTER TABLE standings ALTER COLUMN places SET STORAGE PLAIN")  # in its page, as it is
        op.execute(
            "CREATE FUNCTION neuraverse_only_grows() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION '% only grows', TG_TABLE_NAME; END $$"
        )
    for table in _GROWING:
        if postgres:
            op.execute(
                f"CREATE TRIGGER {table}_only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
                "EXECUTE FUNCTION neuraverse_only_grows()"
            )
            continue
        for what in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{what.lower()} BEFORE {what} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} only grows'); END"
            )


def downgrade() -> None:
    """Take them away again: all accounts, and every skill is public."""
    postgres = op.get_bind().dialect.name == "postgresql"
    for table in _GROWING:
        if postgres:
            op.execute(f"DROP TRIGGER {table}_only_grows ON {table}")
        else:
            for what in ("update", "delete"):
                op.execute(f"DROP TRIGGER {table}_no_{what}")
    if postgres:
        op.execute("DROP FUNCTION neuraverse_only_grows()")
    _METADATA.drop_all(op.get_bind(), tables=_NEW)
    op.drop_index("events_by_skill", "events")
    op.drop_index("events_by_org", "events")
    with op.batch_alter_table("events") as batch:
        batch.drop_constraint("events_skill_id_fk", type_="foreignkey")
        batch.drop_column("skill_id")
    for table, column in _COLUMNS:
        op.execute(f'ALTER TABLE {table} DROP COLUMN "{column.name}"')
    op.add_column("versions", sa.Column("search", sa.String, nullable=False, server_default=""))
