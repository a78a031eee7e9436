"""Skills, versions, aliases, lineage and events, as the first release had them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _text(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    """Create everything."""
    op.create_table(
        "orgs",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("name", _text(64), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.UniqueConstraint("name", name="orgs_name_key"),
    )
    op.create_table(
        "publisher_keys",
        sa.Column("org_id", _ID, sa.ForeignKey("orgs.id", name="publisher_keys_org_id_fk"), primary_key=True),
        sa.Column("fingerprint", sa.String(80), primary_key=True),
        sa.Column("pem", sa.String, nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
    )
    op.create_table(
        "skills",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("org_id", _ID, sa.ForeignKey("orgs.id", name="skills_org_id_fk"), nullable=False),
        sa.Column("name", _text(129), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.UniqueConstraint("name", name="skills_name_key"),
    )
    op.create_table(
        "versions",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("skill_id", _ID, sa.ForeignKey("skills.id", name="versions_skill_id_fk"), nullable=False),
        sa.Column("version", sa.String(128), nullable=False),
        sa.Column("prerelease", sa.Boolean, nullable=False),
        sa.Column("order_key", _text(512), nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("publisher", sa.String(80), nullable=False),
        sa.Column("interface", sa.String(71), nullable=False),
        sa.Column("title", sa.String, nullable=False),
        sa.Column("description", sa.String, nullable=False),
        sa.Column("robot", sa.String, nullable=False),
        sa.Column("rate", sa.Float, nullable=False),
        sa.Column("lower", sa.Float, nullable=False),
        sa.Column("n", sa.BigInteger, nullable=False),
        sa.Column("search", sa.String, nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.UniqueConstraint("digest", name="versions_digest_key"),
        sa.UniqueConstraint("skill_id", "version", name="versions_skill_id_version_key"),
    )
    op.create_table(
        "manifests",
        sa.Column(
            "version_id", _ID, sa.ForeignKey("versions.id", name="manifests_version_id_fk"), primary_key=True
        ),
        sa.Column("manifest", sa.LargeBinary, nullable=False),
        sa.Column("signature", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "version_files",
        sa.Column(
            "version_id",
            _ID,
            sa.ForeignKey("versions.id", name="version_files_version_id_fk"),
            primary_key=True,
        ),
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "lineage",
        sa.Column(
            "child_id", _ID, sa.ForeignKey("versions.id", name="lineage_child_id_fk"), primary_key=True
        ),
        sa.Column(
            "parent_id", _ID, sa.ForeignKey("versions.id", name="lineage_parent_id_fk"), primary_key=True
        ),
    )
    op.create_table(
        "aliases",
        sa.Column("skill_id", _ID, sa.ForeignKey("skills.id", name="aliases_skill_id_fk"), primary_key=True),
        sa.Column("alias", _text(64), primary_key=True),
        sa.Column(
            "version_id", _ID, sa.ForeignKey("versions.id", name="aliases_version_id_fk"), nullable=False
        ),
        sa.Column("updated_at", sa.String(32), nullable=False),
    )
    op.create_table(
        "events",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("org_id", _ID, sa.ForeignKey("orgs.id", name="events_org_id_fk"), nullable=False),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("name", sa.String(129), nullable=False),
        sa.Column("version", sa.String(128), nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sqlite_autoincrement=True,
    )
    for name, table, columns in _INDICES:
        op.create_index(name, table, columns)


_INDICES = (
    ("skills_org_id", "skills", ["org_id"]),
    ("versions_interface", "versions", ["interface"]),
    ("versions_by_order", "versions", ["skill_id", "prerelease", "order_key"]),
    ("version_files_sha256", "version_files", ["sha256"]),
    ("lineage_parent_id", "lineage", ["parent_id"]),
)


def downgrade() -> None:
    """Drop everything."""
    for table in (
        "events",
        "aliases",
        "lineage",
        "version_files",
        "manifests",
        "versions",
        "skills",
        "publisher_keys",
        "orgs",
    ):
        op.drop_table(table)
