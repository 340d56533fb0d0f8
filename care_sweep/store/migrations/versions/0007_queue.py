"""Since when a sweep waits in the queue, for the longest waiting comes first, by its priority.

Frozen as it was released: later migrations change it, this file never does.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("sweeps", sa.Column("queued_at", sa.Float, nullable=False, server_default="0"))
    op.execute("UPDATE sweeps SET queued_at = created_at")
