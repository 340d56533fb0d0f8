"""Was a request accepted before, and if not, may a submission be? Inside a transaction."""

import secrets
from typing import Any

from sqlalchemy import Connection, insert, select

from care_sweep.errors import IdempotencyKeyReused, RequestUnderWay
from care_sweep.spec import SweepSpec, SweepState
from care_sweep.store.audit import note
from care_sweep.store.demands import require_quota
from care_sweep.store.ending import add_event
from care_sweep.store.records import Caller, SweepRecord
from care_sweep.store.rows import sweep_of, sweep_record
from care_sweep.store.schema import LOCAL_OWNER, idempotency_keys, sweeps

__all__ = ["accept", "accepted_as", "keep_key", "under_way"]

_KEY_SECONDS = 24 * 3600


def accepted_as(
    connection: Connection, caller: Caller | None, key: str, body_sha256: str, now: float
) -> SweepRecord | None:
    """The sweep that the caller's key and body were accepted as within 24 hours, if they were.

    Raises:
        IdempotencyKeyReused: the key was used with another body.
    """
    is_kept = idempotency_keys.c.created_at >= now - _KEY_SECONDS
    this = (idempotency_keys.c.owner == _owner(caller)) & (idempotency_keys.c.key == key)
    row = connection.execute(select(idempotency_keys).where(this, is_kept)).mappings().one_or_none()
    if row is None:
        return None
    if row["body_sha256"] != body_sha256:
        raise IdempotencyKeyReused(f"{key!r} was used with another body; take a new key")
    return sweep_of(connection, row["sweep_id"], caller)


def keep_key(
    connection: Connection, caller: Caller | None, key: str, body_sha256: str, sweep_id: str, now: float
) -> None:
    """Have the caller's key and body be accepted as this sweep's for 24 hours; older keys are dropped.

    Raises:
        IntegrityError: another transaction has kept the key meanwhile.
    """
    connection.execute(idempotency_keys.delete().where(idempotency_keys.c.created_at < now - _KEY_SECONDS))
    kept = {"owner": _owner(caller), "key": key, "body_sha256": body_sha256, "sweep_id": sweep_id}
    connection.execute(insert(idempotency_keys), {**kept, "created_at": now})


def under_way(key: str) -> RequestUnderWay:
    """The refusal of a request whose twin may not have been answered yet."""
    return RequestUnderWay(
        f"a request with the Idempotency-Key {key!r} may still be under way; send it again"
    )


def accept(
    connection: Connection,
    caller: Caller | None,
    spec: SweepSpec,
    idempotency_key: str | None,
    body_sha256: str,
    now: float,
) -> tuple[SweepRecord, bool]:
    """The caller's sweep, and whether it is new.

    Raises:
        IdempotencyKeyReused: the key was used with another body.
        QuotaExceeded: the caller's token may have no further sweep.
    """
    if idempotency_key is not None:
        known = accepted_as(connection, caller, idempotency_key, body_sha256, now)
        if known is not None:
            return known, False
    require_quota(connection, caller)
    sweep_id = secrets.token_hex(6)
    row: dict[str, Any] = {"id": sweep_id, "name": spec.name, "spec": spec.model_dump(mode="json")}
    row |= {"state": SweepState.QUEUED, "created_at": now, "queued_at": now, "owner": _owner(caller)}
    row |= {"priority": spec.priority, "token_id": None if caller is None else caller.token_id}
    inserted = connection.execute(insert(sweeps).returning(sweeps), row).mappings().one()
    if idempotency_key is not None:
        keep_key(connection, caller, idempotency_key, body_sha256, sweep_id, now)
    note(connection, caller, "submit", sweep_id, SweepState.QUEUED, now)
    add_event(connection, sweep_id, "sweep", {"state": SweepState.QUEUED}, now)
    return sweep_record({**inserted, "spec": spec}, {}, {}), True


def _owner(caller: Caller | None) -> str:
    return LOCAL_OWNER if caller is None else caller.owner
