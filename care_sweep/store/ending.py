"""How does a sweep, or a driver's hold on it, end, and how is it told? In the transaction that does it."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, func, insert, select, update

from care_sweep.spec import SweepState, TrialState
from care_sweep.store.schema import attempts, events, sweeps, trials

__all__ = ["OPEN_STATES", "add_event", "end_sweep", "let_go", "no_earlier"]

OPEN_STATES = (TrialState.WAITING, TrialState.RUNNING)


def end_sweep(
    connection: Connection,
    sweep_id: str,
    state: SweepState,
    reason: str | None,
    message: str | None,
    now: float,
) -> None:
    """End a sweep in the caller's transaction; no trial of an ended sweep stays open."""
    assert state.is_terminal
    finished_at = no_earlier(trials.c.started_at, now)
    end = {"state": TrialState.CANCELLED, "reason": "sweep ended", "finished_at": finished_at}
    still_open = (trials.c.sweep_id == sweep_id) & trials.c.state.in_(list(OPEN_STATES))
    for number in connection.execute(select(trials.c.number).where(still_open)).scalars().all():
        add_event(connection, sweep_id, "trial", {"number": number, "state": TrialState.CANCELLED}, now)
    connection.execute(update(trials).where(still_open).values(end))
    connection.execute(
        update(attempts)
        .where(attempts.c.sweep_id == sweep_id, attempts.c.finished_at.is_(None))
        .values(finished_at=no_earlier(attempts.c.started_at, now), reason="sweep ended")
    )
    change = {"state": state, "reason": reason, "message": message}
    finished = {"finished_at": no_earlier(func.coalesce(sweeps.c.started_at, sweeps.c.created_at), now)}
    connection.execute(update(sweeps).where(sweeps.c.id == sweep_id).values(change | finished))
    add_event(connection, sweep_id, "sweep", change, now)


def let_go(connection: Connection, sweep_id: str, reason: str, now: float) -> None:
    """Take a sweep from its holder in the caller's transaction; its running trials wait from now on."""
    running = (trials.c.sweep_id == sweep_id) & (trials.c.state == TrialState.RUNNING)
    change = {"state": TrialState.WAITING, "reason": reason, "message": None}
    for number in connection.execute(select(trials.c.number).where(running)).scalars().all():
        add_event(connection, sweep_id, "trial", {"number": number, **change}, now)
    connection.execute(update(trials).where(running).values(change))
    connection.execute(
        update(attempts)
        .where(attempts.c.sweep_id == sweep_id, attempts.c.finished_at.is_(None))
        .values(finished_at=no_earlier(attempts.c.started_at, now), reason=reason)
    )
    connection.execute(update(sweeps).where(sweeps.c.id == sweep_id).values(lease_owner=None))


def no_earlier(begin: ColumnElement[Any], now: float) -> ColumnElement[Any]:
    """The moment of an end; by the clock of the machine where it began, that may be before the begin."""
    return case((begin > now, begin), else_=now)


def add_event(connection: Connection, sweep_id: str, kind: str, data: Mapping[str, Any], now: float) -> None:
    """Tell of a change in the transaction that makes it, so that neither exists without the other."""
    row = {"sweep_id": sweep_id, "kind": kind, "data": dict(data), "recorded_at": now}
    connection.execute(insert(events), row)  # values() would take twice as long to compile
