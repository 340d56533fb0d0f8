"""The first schema.

Frozen as it was released: later migrations change it, this file never does.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _of_a_trial() -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["sweep_id", "trial_number"], ["trials.sweep_id", "trials.number"], ondelete="CASCADE"
    )


def upgrade() -> None:
    op.create_table(
        "sweeps",
        sa.Column("sequence", _SEQUENCE, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("reason", sa.String(64)),
        sa.Column("message", sa.Text),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("started_at", sa.Float),
        sa.Column("finished_at", sa.Float),
        sa.Column("lease_owner", sa.String(200)),
        sa.Column("fencing_token", sa.Integer, nullable=False),
        sa.Column("lease_counter", sa.Integer, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "trials",
        sa.Column(
            "sweep_id", sa.String(32), sa.ForeignKey("sweeps.id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("parameters", sa.JSON, nullable=False),
        sa.Column("is_baseline", sa.Boolean, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(64)),
        sa.Column("message", sa.Text),
        sa.Column("value", sa.Float),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("last_epoch", sa.Integer, nullable=False),
        sa.Column("checkpoint", sa.JSON),
        sa.Column("started_at", sa.Float),
        sa.Column("finished_at", sa.Float),
    )
    op.create_table(
        "attempts",
        sa.Column("sweep_id", sa.String(32), primary_key=True),
        sa.Column("trial_number", sa.Integer, primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True),
        sa.Column("started_at", sa.Float, nullable=False),
        sa.Column("finished_at", sa.Float),
        sa.Column("reason", sa.String(64)),
        sa.Column("message", sa.Text),
        _of_a_trial(),
    )
    op.create_table(
        "measurements",
        sa.Column("sweep_id", sa.String(32), primary_key=True),
        sa.Column("trial_number", sa.Integer, primary_key=True),
        sa.Column("epoch", sa.Integer, primary_key=True),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("recorded_at", sa.Float, nullable=False),
        _of_a_trial(),
    )
    op.create_table(
        "events",
        sa.Column("sequence", _SEQUENCE, primary_key=True, autoincrement=True),
        sa.Column("sweep_id", sa.String(32), sa.ForeignKey("sweeps.id", ondelete="CASCADE"), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sa.Column("recorded_at", sa.Float, nullable=False),
        sa.Index("events_by_sweep", "sweep_id", "sequence"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("body_sha256", sa.String(64), nullable=False),
        sa.Column("sweep_id", sa.String(32), sa.ForeignKey("sweeps.id", ondelete="CASCADE"), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "clusters",
        sa.Column("runner", sa.String(200), primary_key=True),
        sa.Column("report", sa.JSON, nullable=False),
        sa.Column("reported_at", sa.Float, nullable=False),
    )
