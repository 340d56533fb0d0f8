"""How does a row become a record? What reads and writes of sweeps have in common, inside a transaction."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, func, select, true

from care_sweep.errors import NotFound
from care_sweep.spec import CheckpointReference, Place, Scalar, SweepSpec, SweepState, TrialState
from care_sweep.store.records import AttemptRecord, Caller, Scope, SweepRecord, TrialRecord
from care_sweep.store.schema import enqueued, measurements, sweeps, trials

__all__ = [
    "WHOLE_TRIALS",
    "attempt_record",
    "counts_of_trials",
    "enqueued_points",
    "state_of",
    "sweep_of",
    "sweep_record",
    "trial_record",
    "visible_to",
]

WHOLE_TRIALS = select(
    trials,
    # One row by its key for each trial that is answered. As an outer join, PostgreSQL may join all the
    # trials of a sweep before it takes a page of them, by a plan for as few as the last statistics had.
    select(measurements.c.metrics)
    .where(
        measurements.c.sweep_id == trials.c.sweep_id,
        measurements.c.trial_number == trials.c.number,
        measurements.c.epoch == trials.c.last_epoch,
    )
    .scalar_subquery()
    .label("metrics"),
)
"""Every column of `trials`, and the `metrics` of the last epoch."""


def visible_to(caller: Caller | None) -> ColumnElement[bool]:
    """Which sweeps a caller may know of: its own; all of them an admin, and a runner, who is no caller."""
    if caller is None or caller.scope is Scope.ADMIN:
        return true()
    return sweeps.c.owner == caller.owner


def state_of(connection: Connection, sweep_id: str, caller: Caller | None) -> SweepState:
    """Where a sweep that the caller may know of stands. Raises NotFound."""
    query = select(sweeps.c.state).where(sweeps.c.id == sweep_id, visible_to(caller))
    state = connection.execute(query).scalar()
    if state is None:
        raise _no_such(sweep_id)
    return SweepState(state)


def sweep_of(connection: Connection, sweep_id: str, caller: Caller | None = None) -> SweepRecord:
    """One sweep that the caller may know of. Raises NotFound."""
    query = select(sweeps).where(sweeps.c.id == sweep_id, visible_to(caller))
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise _no_such(sweep_id)
    counts = counts_of_trials(connection, [sweep_id])
    return sweep_record(row, counts[sweep_id], enqueued_points(connection, sweep_id))


def counts_of_trials(
    connection: Connection, sweep_ids: Sequence[str]
) -> Mapping[str, Mapping[TrialState, int]]:
    """How many trials of each sweep are in each state."""
    counts: dict[str, dict[TrialState, int]] = {sweep_id: {} for sweep_id in sweep_ids}
    query = (
        select(trials.c.sweep_id, trials.c.state, func.count())
        .where(trials.c.sweep_id.in_(list(sweep_ids)))
        .group_by(trials.c.sweep_id, trials.c.state)
    )
    for sweep_id, state, count in connection.execute(query):
        counts[sweep_id][TrialState(state)] = count
    return counts


def enqueued_points(connection: Connection, sweep_id: str) -> Mapping[int, Mapping[str, Scalar]]:
    """What users enqueued of a sweep and no trial was made of yet, by sequence, first to last."""
    query = (
        select(enqueued.c.sequence, enqueued.c.parameters)
        .where(enqueued.c.sweep_id == sweep_id, enqueued.c.trial_number.is_(None))
        .order_by(enqueued.c.sequence)
    )
    return {row.sequence: row.parameters for row in connection.execute(query)}


def sweep_record(
    row: RowMapping | Mapping[str, Any],
    trial_counts: Mapping[TrialState, int],
    enqueued: Mapping[int, Mapping[str, Scalar]] | None,
) -> SweepRecord:
    """A whole row of `sweeps`."""
    fields = {key: value for key, value in row.items() if key != "sequence"}
    fields["spec"] = SweepSpec.model_validate(row["spec"])
    fields["state"] = SweepState(row["state"])
    return SweepRecord(**fields, trial_counts=trial_counts, enqueued=enqueued)


def _no_such(sweep_id: str) -> NotFound:
    return NotFound(f"there is no sweep {sweep_id!r}")


def attempt_record(row: RowMapping) -> AttemptRecord:
    place = None if row["place"] is None else Place.model_validate(row["place"])
    return AttemptRecord(**{**row, "place": place})


def trial_record(row: RowMapping) -> TrialRecord:
    """A row of `WHOLE_TRIALS`."""
    fields = dict(row)
    fields["state"] = TrialState(row["state"])
    fields["metrics"] = row["metrics"] or {}
    if row["checkpoint"] is not None:
        fields["checkpoint"] = CheckpointReference.model_validate(row["checkpoint"])
    return TrialRecord(**fields)
