"""What is looked up often and had no index: trials by their state, idempotency keys by their age.

Frozen as it was released: later migrations change it, this file never does.
"""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_index("trials_by_state", "trials", ["sweep_id", "state", "number"])
    op.create_index("idempotency_keys_by_age", "idempotency_keys", ["created_at"])
