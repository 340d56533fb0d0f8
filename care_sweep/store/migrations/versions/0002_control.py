"""What control needs: a revision of what users may change, what was spent, enqueued points, trials to stop.

Frozen as it was released: later migrations change it, this file never does.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.add_column("sweeps", sa.Column("revision", sa.Integer, nullable=False, server_default="1"))
    op.add_column("sweeps", sa.Column("active_seconds", sa.Float, nullable=False, server_default="0"))
    op.add_column("sweeps", sa.Column("gpu_seconds", sa.Float, nullable=False, server_default="0"))
    op.add_column(
        "trials", sa.Column("is_stop_requested", sa.Boolean, nullable=False, server_default=sa.false())
    )
    op.create_table(
        "enqueued",
        sa.Column("sequence", _SEQUENCE, primary_key=True, autoincrement=True),
        sa.Column("sweep_id", sa.String(32), sa.ForeignKey("sweeps.id", ondelete="CASCADE"), nullable=False),
        sa.Column("parameters", sa.JSON, nullable=False),
        sa.Column("trial_number", sa.Integer),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Index("enqueued_by_sweep", "sweep_id", "sequence"),
        sqlite_autoincrement=True,
    )
