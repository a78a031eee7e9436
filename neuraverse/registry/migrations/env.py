"""What Alembic runs: the steps, over the connection that `Database.migrate` holds, in its transaction."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], render_as_batch=True)
context.run_migrations()
