"""What tells the report that was counted last, so that one that is sent again is not counted again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("field", sa.Column("last_mark", sa.String(64), nullable=False, server_default=""))


def downgrade() -> None:
    """Take it away again."""
    op.execute("ALTER TABLE field DROP COLUMN last_mark")
