"""How does a row become a record? What reads and writes of sweeps have in common, inside a transaction."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, func, select

from care_sweep.errors import NotFound
from care_sweep.spec import CheckpointReference, SweepSpec, SweepState, TrialState
from care_sweep.store.records import SweepRecord, TrialRecord
from care_sweep.store.schema import sweeps, trials

__all__ = ["counts_of_trials", "sweep_of", "sweep_record", "trial_record"]


def sweep_of(connection: Connection, sweep_id: str) -> SweepRecord:
    """One sweep. Raises NotFound."""
    row = connection.execute(select(sweeps).where(sweeps.c.id == sweep_id)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"there is no sweep {sweep_id!r}")
    return sweep_record(row, counts_of_trials(connection, [sweep_id])[sweep_id])


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


def sweep_record(row: RowMapping | Mapping[str, Any], trial_counts: Mapping[TrialState, int]) -> SweepRecord:
    """A whole row of `sweeps`."""
    fields = {key: value for key, value in row.items() if key != "sequence"}
    fields["spec"] = SweepSpec.model_validate(row["spec"])
    fields["state"] = SweepState(row["state"])
    return SweepRecord(**fields, trial_counts=trial_counts)


def trial_record(row: RowMapping) -> TrialRecord:
    """A whole row of `trials`, with the `metrics` of its last epoch."""
    fields = dict(row)
    fields["state"] = TrialState(row["state"])
    fields["metrics"] = row["metrics"] or {}
    if row["checkpoint"] is not None:
        fields["checkpoint"] = CheckpointReference.model_validate(row["checkpoint"])
    return TrialRecord(**fields)
