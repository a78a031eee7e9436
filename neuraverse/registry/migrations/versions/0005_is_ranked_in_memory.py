"""What tells which scopes and shelves have changed, so that a server reads those again and no others."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add stamps; the best rank of a shelf has no reader any more."""
    op.create_table(
        "rankings",
        sa.Column("scope", sa.BigInteger, autoincrement=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("stamp", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("scope", name="rankings_pk"),
    )
    op.execute(
        "INSERT INTO rankings (scope, size, stamp) "
        "SELECT scope, MAX(place) + 1, 0 FROM listings GROUP BY scope"
    )
    op.add_column("standings", sa.Column("stamp", sa.BigInteger, nullable=False, server_default="0"))
    op.execute("ALTER TABLE standings DROP COLUMN best")
    op.create_index("standings_by_stamp", "standings", ["scope", "stamp"])


def downgrade() -> None:
    """Take them away; that every shelf might hold the very best costs an older release time, and no more."""
    op.drop_index("standings_by_stamp", "standings")
    op.execute("ALTER TABLE standings DROP COLUMN stamp")
    op.add_column("standings", sa.Column("best", sa.BigInteger, nullable=False, server_default="0"))
    op.drop_table("rankings")
