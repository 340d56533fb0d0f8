"""How does a sweep read to Optuna itself? One SQLite file that `optuna.load_study` opens.

Optuna makes the file, its tables and the study. The rows of trials are written past it, in the layout of its
schema: its own `add_trial` takes about 2 ms for each value of each epoch. A test holds the file against one
that `add_trial` has filled.
"""

import errno
import json
import os
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial, create_trial

from care_sweep.errors import CareSweepError
from care_sweep.search.space import distributions_inside
from care_sweep.search.study import VIOLATION, quiet_study
from care_sweep.spec import Scalar, SweepSpec, TrialState

__all__ = ["StoredTrial", "write_study"]


@dataclass(frozen=True)
class StoredTrial:
    """A trial as it is stored: `curve` is the metric by epoch, times are seconds since 1970.

    `value` is needed of COMPLETE trials, `finished_at` of all that have ended.
    """

    number: int
    values: Mapping[str, Scalar]
    is_baseline: bool
    state: TrialState
    reason: str | None
    value: float | None
    curve: Mapping[int, float]
    started_at: float
    finished_at: float | None


def write_study(path: Path, name: str, spec: SweepSpec, trials: Iterable[StoredTrial]) -> None:
    """Write a study of that name, which maximises, into a file that is not there yet; `trials` by number.

    Each trial ends as the sweep's own study was told: CANCELLED as FAIL, INFEASIBLE with a violated
    constraint, COMPLETE with its last value or PRUNED where it has none. What has not ended is RUNNING. A
    baseline's value that lies outside the space is no parameter, for no distribution could hold it, but
    stands in the user attribute `outside_space`. Further user attributes of a trial are `number`,
    `is_baseline`, `seed`, `state` and `reason`; the study's `spec` is the sweep's document.

    Raises:
        OSError: the disk is full.
    """
    try:
        study_id = _make_study(path, name, spec)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA synchronous=OFF")  # nobody goes on from half a file
            with connection:
                for trial_id, trial in enumerate(trials, start=1):
                    _insert(connection, study_id, trial_id, _frozen(trial, spec))
    except CareSweepError:  # of where the trials come from
        raise
    except Exception as error:
        if _is_full(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def _is_full(error: BaseException | None) -> bool:
    """Whether SQLite has said so, to us or to what Optuna has it wrapped in."""
    while error is not None:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return True
        error = error.__cause__
    return False


def _make_study(path: Path, name: str, spec: SweepSpec) -> int:
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    try:
        study = quiet_study(storage, name)
        study.set_user_attr("spec", spec.model_dump(mode="json"))
        return storage.get_study_id_from_name(name)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _frozen(trial: StoredTrial, spec: SweepSpec) -> FrozenTrial:
    inside = distributions_inside(spec.space, trial.values)
    outside = {name: value for name, value in trial.values.items() if name not in inside}
    attributes = {
        "number": trial.number,
        "is_baseline": trial.is_baseline,
        "seed": spec.seed,
        "state": trial.state,
        "reason": trial.reason,
        "outside_space": outside or None,
    }
    state, value = _told(trial)
    frozen = create_trial(
        state=state,
        value=value,
        params={name: trial.values[name] for name in inside},
        distributions=inside,
        user_attrs={key: value for key, value in attributes.items() if value is not None},
        intermediate_values=dict(trial.curve),
        constraints=dict([VIOLATION]) if trial.state is TrialState.INFEASIBLE else None,
    )
    frozen.datetime_start = datetime.fromtimestamp(trial.started_at, UTC)
    if state.is_finished():
        assert trial.finished_at is not None, f"trial {trial.number} is {trial.state} but has not ended"
        frozen.datetime_complete = datetime.fromtimestamp(trial.finished_at, UTC)
    return frozen


def _told(trial: StoredTrial) -> tuple[optuna.trial.TrialState, float | None]:
    """The state and value that `search.study` has told for it."""
    last = trial.curve[max(trial.curve)] if trial.curve else None
    match trial.state:
        case TrialState.COMPLETE:
            return optuna.trial.TrialState.COMPLETE, trial.value
        case TrialState.PRUNED:
            return optuna.trial.TrialState.PRUNED, last
        case TrialState.INFEASIBLE if last is not None:
            return optuna.trial.TrialState.COMPLETE, last
        case TrialState.INFEASIBLE:
            return optuna.trial.TrialState.PRUNED, None
        case TrialState.WAITING | TrialState.RUNNING:
            return optuna.trial.TrialState.RUNNING, None
    return optuna.trial.TrialState.FAIL, None


def _insert(connection: sqlite3.Connection, study_id: int, trial_id: int, trial: FrozenTrial) -> None:
    def insert(table: str, columns: str, rows: Iterable[tuple[Any, ...]]) -> None:
        marks = ", ".join("?" * len(columns.split()))
        names = ", ".join(columns.split())
        statement = f"INSERT INTO {table} ({names}) VALUES ({marks})"  # noqa: S608  (names that stand below)
        connection.executemany(statement, rows)

    times = (_stored_time(trial.datetime_start), _stored_time(trial.datetime_complete))
    row = (trial_id, trial_id - 1, study_id, trial.state.name, *times)
    insert("trials", "trial_id number study_id state datetime_start datetime_complete", [row])
    if trial.value is not None:
        insert("trial_values", "trial_id objective value value_type", [(trial_id, 0, trial.value, "FINITE")])
    insert(
        "trial_params",
        "trial_id param_name param_value distribution_json",
        (
            (trial_id, name, kind.to_internal_repr(trial.params[name]), distribution_to_json(kind))
            for name, kind in trial.distributions.items()
        ),
    )
    insert(
        "trial_intermediate_values",
        "trial_id step intermediate_value intermediate_value_type",
        ((trial_id, step, value, "FINITE") for step, value in trial.intermediate_values.items()),
    )
    for table, attributes in (
        ("trial_user_attributes", trial.user_attrs),
        ("trial_system_attributes", trial.system_attrs),
    ):
        rows = ((trial_id, key, json.dumps(value)) for key, value in attributes.items())
        insert(table, "trial_id key value_json", rows)


def _stored_time(moment: datetime | None) -> str | None:
    """In UTC, as SQLAlchemy writes it for SQLite."""
    return None if moment is None else moment.strftime("%Y-%m-%d %H:%M:%S.%f")
