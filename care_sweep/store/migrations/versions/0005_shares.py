"""Who gets how much of a cluster: what sweeps have had of it, and the quotas of tokens.

Sweeps from before were submitted by no known token, and count against nobody's quota.

Frozen as it was released: later migrations change it, this file never does.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("sweeps", sa.Column("token_id", sa.String(12)))
    op.add_column("sweeps", sa.Column("gpus_per_trial", sa.Float))
    op.add_column("sweeps", sa.Column("share_seconds", sa.Float, nullable=False, server_default="0"))
    op.add_column("sweeps", sa.Column("priority", sa.Float, nullable=False, server_default="1"))
    op.add_column("sweeps", sa.Column("is_ready", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("tokens", sa.Column("max_sweeps", sa.Integer))
    op.add_column("tokens", sa.Column("max_concurrent_trials", sa.Integer))
    op.add_column("tokens", sa.Column("max_gpu_hours", sa.Float))
    op.add_column("tokens", sa.Column("gpu_seconds", sa.Float, nullable=False, server_default="0"))
