"""An id for the registry; states of versions; blobs, leases and uploads; who made an event."""

from __future__ import annotations

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_COLUMNS = (
    ("skills", sa.Column("serial", sa.Integer, nullable=False, server_default="0")),
    ("skills", sa.Column("visibility", sa.String(16), nullable=False, server_default="public")),
    ("skills", sa.Column("deprecated", sa.String, nullable=True)),
    ("skills", sa.Column("successor", sa.String(129), nullable=True)),
    ("versions", sa.Column("state", sa.String(16), nullable=False, server_default="active")),
    ("versions", sa.Column("reason", sa.String, nullable=False, server_default="")),
    ("events", sa.Column("by", sa.String(80), nullable=False, server_default="")),
)


def upgrade() -> None:
    """Add them; what versions refer to becomes rows of blobs, under the names that files had until now."""
    op.create_table(
        "registry",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("created_at", sa.String(32), nullable=False),
    )
    at = sa.func.coalesce(
        sa.select(sa.func.min(sa.column("created_at"))).select_from(sa.table("orgs")).scalar_subquery(), ""
    )
    op.execute(
        sa.insert(sa.table("registry", sa.column("id"), sa.column("created_at"))).values(
            id=str(uuid.uuid4()), created_at=at
        )
    )
    op.create_table(
        "blobs",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("lease_until", sa.String(32), nullable=False),
        sa.Column("lost", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.UniqueConstraint("key", name="blobs_key_key"),
    )
    op.create_index("blobs_lease_until", "blobs", ["lease_until"])
    op.execute(
        "INSERT INTO blobs (sha256, size, key, created_at, lease_until) "
        "SELECT f.sha256, MIN(f.size), 'sha256/' || substr(f.sha256, 1, 2) || '/' || f.sha256, "
        "MIN(v.created_at), '' FROM version_files f JOIN versions v ON v.id = f.version_id GROUP BY f.sha256"
    )
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("expires_at", sa.String(32), nullable=False),
    )
    op.create_index("uploads_expires_at", "uploads", ["expires_at"])
    with op.batch_alter_table("version_files") as batch:
        batch.create_foreign_key("version_files_sha256_fk", "blobs", ["sha256"], ["sha256"])
    for table, column in _COLUMNS:
        op.add_column(table, column)
    op.create_index("events_name", "events", ["name"])


def downgrade() -> None:
    """Take them away again; yanked and revoked versions become plain ones, uploads are forgotten."""
    op.drop_index("events_name", "events")
    for table, column in _COLUMNS:
        op.execute(f'ALTER TABLE {table} DROP COLUMN "{column.name}"')
    with op.batch_alter_table("version_files") as batch:
        batch.drop_constraint("version_files_sha256_fk", type_="foreignkey")
    for name in ("uploads", "blobs", "registry"):
        op.drop_table(name)
