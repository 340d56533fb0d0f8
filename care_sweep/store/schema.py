"""Which tables there are. Times are seconds since 1970 in UTC; JSON columns hold documents of `spec`."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    false,
)

__all__ = [
    "LOCAL_OWNER",
    "SCHEMA_VERSION",
    "attempts",
    "audit",
    "clusters",
    "enqueued",
    "events",
    "idempotency_keys",
    "measurements",
    "metadata",
    "sweeps",
    "tokens",
    "trials",
]

SCHEMA_VERSION = "0007"
"""The newest migration; a test holds it against `migrations/versions`."""

LOCAL_OWNER = "local"
"""Whose sweeps are those that a service took without asking for a token."""

metadata = MetaData()

_Sequence = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts only INTEGER keys up by itself

sweeps = Table(
    "sweeps",
    metadata,
    Column("sequence", _Sequence, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("name", String(100), nullable=False),
    Column("spec", JSON, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("reason", String(64)),
    Column("message", Text),
    Column("created_at", Float, nullable=False),
    Column("queued_at", Float, nullable=False, server_default="0"),  # last
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("lease_owner", String(200)),
    Column("fencing_token", Integer, nullable=False, default=0),
    Column("lease_counter", Integer, nullable=False, default=0),
    Column("revision", Integer, nullable=False, server_default="1"),
    Column("active_seconds", Float, nullable=False, server_default="0"),
    Column("gpu_seconds", Float, nullable=False, server_default="0"),
    Column("search_seconds", Float, nullable=False, server_default="0"),
    Column("num_images", BigInteger, nullable=False, server_default="0"),
    Column("owner", String(100), nullable=False, server_default=LOCAL_OWNER),
    Column("token_id", String(12)),  # of the token that submitted it, if one did
    Column("gpus_per_trial", Float),  # what was chosen where its document says `auto`
    Column("share_seconds", Float, nullable=False, server_default="0"),
    Column("priority", Float, nullable=False, server_default="1"),  # as in the document
    Column("is_ready", Boolean, nullable=False, server_default=false()),  # its driver can begin trials
    Index("sweeps_by_owner", "owner", "sequence"),
    sqlite_autoincrement=True,
)

trials = Table(
    "trials",
    metadata,
    Column("sweep_id", ForeignKey("sweeps.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("parameters", JSON, nullable=False),
    Column("is_baseline", Boolean, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", String(64)),
    Column("message", Text),
    Column("value", Float),
    Column("attempt", Integer, nullable=False),
    Column("last_epoch", Integer, nullable=False, default=0),
    Column("checkpoint", JSON(none_as_null=True)),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("is_stop_requested", Boolean, nullable=False, server_default=false()),
    Index("trials_by_state", "sweep_id", "state", "number"),
)

enqueued = Table(
    "enqueued",
    metadata,
    Column("sequence", _Sequence, primary_key=True, autoincrement=True),
    Column("sweep_id", ForeignKey("sweeps.id", ondelete="CASCADE"), nullable=False),
    Column("parameters", JSON, nullable=False),
    Column("trial_number", Integer),  # the trial that was made of it
    Column("created_at", Float, nullable=False),
    Index("enqueued_by_sweep", "sweep_id", "sequence"),
    sqlite_autoincrement=True,
)

attempts = Table(
    "attempts",
    metadata,
    Column("sweep_id", String(32), primary_key=True),
    Column("trial_number", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("started_at", Float, nullable=False),
    Column("finished_at", Float),
    Column("reason", String(64)),
    Column("message", Text),
    Column("place", JSON(none_as_null=True)),  # in the Ray cluster
    ForeignKeyConstraint(
        ["sweep_id", "trial_number"], ["trials.sweep_id", "trials.number"], ondelete="CASCADE"
    ),
)

measurements = Table(
    "measurements",
    metadata,
    Column("sweep_id", String(32), primary_key=True),
    Column("trial_number", Integer, primary_key=True),
    Column("epoch", Integer, primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("recorded_at", Float, nullable=False),
    ForeignKeyConstraint(
        ["sweep_id", "trial_number"], ["trials.sweep_id", "trials.number"], ondelete="CASCADE"
    ),
)

events = Table(
    "events",
    metadata,
    Column("sequence", _Sequence, primary_key=True, autoincrement=True),
    Column("sweep_id", ForeignKey("sweeps.id", ondelete="CASCADE"), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("data", JSON, nullable=False),
    Column("recorded_at", Float, nullable=False),
    Index("events_by_sweep", "sweep_id", "sequence"),
    sqlite_autoincrement=True,
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("owner", String(100), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("body_sha256", String(64), nullable=False),
    Column("sweep_id", ForeignKey("sweeps.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", Float, nullable=False),
    Index("idempotency_keys_by_age", "created_at"),
)

clusters = Table(
    "clusters",
    metadata,
    Column("runner", String(200), primary_key=True),
    Column("report", JSON, nullable=False),
    Column("reported_at", Float, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(12), primary_key=True),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("owner", String(100), nullable=False),
    Column("scope", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
    Column("max_sweeps", Integer),
    Column("max_concurrent_trials", Integer),
    Column("max_gpu_hours", Float),
    Column("gpu_seconds", Float, nullable=False, server_default="0"),  # of its sweeps, deleted ones too
)

audit = Table(
    "audit",
    metadata,
    Column("sequence", _Sequence, primary_key=True, autoincrement=True),
    Column("recorded_at", Float, nullable=False),
    Column("owner", String(100), nullable=False),
    Column("token_id", String(12)),  # of a token, or none where none is asked for
    Column("action", String(32), nullable=False),
    Column("subject", String(100), nullable=False),  # no reference: it outlives what it tells of
    Column("outcome", String(16), nullable=False),
    sqlite_autoincrement=True,
)
