"""How does a sweep, a trial or a hold on a sweep end, and how is it told? In the transaction that does it."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, func, insert, select, update

from care_sweep.spec import CheckpointReference, SweepState, TrialState
from care_sweep.store.schema import attempts, events, sweeps, trials

__all__ = [
    "OPEN_STATES",
    "add_event",
    "close_attempt",
    "end_sweep",
    "end_trial",
    "let_go",
    "no_earlier",
    "open_trial",
]

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


def end_trial(
    connection: Connection,
    sweep_id: str,
    number: int,
    state: TrialState,
    reason: str | None,
    now: float,
    *,
    value: float | None = None,
    checkpoint: CheckpointReference | None = None,
    message: str | None = None,
) -> None:
    """End an open trial and its attempt in the caller's transaction."""
    assert state.is_terminal
    close_attempt(connection, sweep_id, number, reason, now, message)
    change = {"state": state, "value": value, "reason": reason, "message": message}
    kept = {
        "checkpoint": checkpoint.model_dump() if checkpoint else None,
        "finished_at": no_earlier(trials.c.started_at, now),
    }
    changed = connection.execute(
        update(trials).where(open_trial(sweep_id, number)).values({**change, **kept})
    )
    assert changed.rowcount == 1, f"trial {number} is not open"
    add_event(connection, sweep_id, "trial", {"number": number, **change}, now)


def close_attempt(
    connection: Connection,
    sweep_id: str,
    number: int,
    reason: str | None,
    now: float,
    message: str | None = None,
) -> None:
    """End the attempt that a trial is in, if it is in one, in the caller's transaction."""
    end = {"reason": reason, "message": message, "finished_at": no_earlier(attempts.c.started_at, now)}
    this = (attempts.c.sweep_id == sweep_id) & (attempts.c.trial_number == number)
    connection.execute(update(attempts).where(this, attempts.c.finished_at.is_(None)).values(end))


def open_trial(sweep_id: str, number: int) -> ColumnElement[bool]:
    """Which row a trial has, while it is open."""
    this = (trials.c.sweep_id == sweep_id) & (trials.c.number == number)
    return this & trials.c.state.in_(OPEN_STATES)


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
