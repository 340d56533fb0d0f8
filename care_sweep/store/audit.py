"""Who did what? A row of each deed, in the transaction that does it: neither is there without the other."""

from collections.abc import Sequence

from sqlalchemy import Connection, Engine, insert, select

from care_sweep.store.database import reading
from care_sweep.store.records import AuditRecord, Caller
from care_sweep.store.schema import audit

__all__ = ["newest_deeds", "note"]


def note(
    connection: Connection, caller: Caller | None, action: str, subject: str, outcome: str, now: float
) -> None:
    """Tell of a caller's deed in the transaction that does it; what a runner does has no caller."""
    if caller is None:
        return
    row = {"recorded_at": now, "owner": caller.owner, "token_id": caller.token_id}
    connection.execute(insert(audit), {**row, "action": action, "subject": subject, "outcome": outcome})


def newest_deeds(engine: Engine, limit: int) -> Sequence[AuditRecord]:
    """The last deeds, oldest first."""
    query = select(audit).order_by(audit.c.sequence.desc()).limit(limit)
    with reading(engine) as connection:
        rows = connection.execute(query).mappings().all()
    return [AuditRecord(**row) for row in reversed(rows)]
