"""Who may do what, and who did: tokens, the owners of sweeps and of idempotency keys, the audit log.

Sweeps and keys from before belong to `local`, as those of a service that asks for no token.

Frozen as it was released: later migrations change it, this file never does.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.add_column("sweeps", sa.Column("owner", sa.String(100), nullable=False, server_default="local"))
    op.create_index("sweeps_by_owner", "sweeps", ["owner", "sequence"])
    _give_keys_an_owner()
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(12), primary_key=True),
        sa.Column("sha256", sa.String(64), nullable=False, unique=True),
        sa.Column("owner", sa.String(100), nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float),
        sa.Column("revoked_at", sa.Float),
    )
    op.create_table(
        "audit",
        sa.Column("sequence", _SEQUENCE, primary_key=True, autoincrement=True),
        sa.Column("recorded_at", sa.Float, nullable=False),
        sa.Column("owner", sa.String(100), nullable=False),
        sa.Column("token_id", sa.String(12)),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("subject", sa.String(100), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sqlite_autoincrement=True,
    )


def _give_keys_an_owner() -> None:
    """A primary key cannot be changed in SQLite, so the table is made anew; it holds a day's keys."""
    found = op.get_bind().execute(sa.text("SELECT * FROM idempotency_keys")).mappings()
    rows = [{**row, "owner": "local"} for row in found]
    op.drop_table("idempotency_keys")
    keys = op.create_table(
        "idempotency_keys",
        sa.Column("owner", sa.String(100), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("body_sha256", sa.String(64), nullable=False),
        sa.Column("sweep_id", sa.String(32), sa.ForeignKey("sweeps.id", ondelete="CASCADE"), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Index("idempotency_keys_by_age", "created_at"),
    )
    op.bulk_insert(keys, rows)
