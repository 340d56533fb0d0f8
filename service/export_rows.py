"""What does an export say? A sweep's trials and measurements, read from the store a page at a time."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, get_args

from care_sweep.search.analysis import standard_error
from care_sweep.search.optuna_file import StoredTrial
from care_sweep.spec import TrialConfig
from care_sweep.store import MeasurementRecord, Store, SweepRecord, TrialRecord
from service.tabular import Cell, Table

__all__ = ["measurement_table", "stored_trials", "trial_table"]

_PAGE_TRIALS = 1000
_PAGE_MEASUREMENTS = 5000


def trial_table(store: Store, sweep: SweepRecord) -> Table:
    """A row for each trial, by number; `config_` has its whole configuration."""
    columns = {
        "number": int,
        "state": str,
        "reason": str,
        "value": float,
        "standard_error": float,
        "is_baseline": bool,
        "attempts": int,
        "last_epoch": int,
        "trained_seconds": float,
        "started_at": datetime,
        "finished_at": datetime,
        **{f"config_{name}": _kind(field.annotation) for name, field in TrialConfig.model_fields.items()},
    }
    return Table(columns, _trial_rows(store, sweep))


def measurement_table(store: Store, sweep: SweepRecord) -> Table:
    """A row for each measurement, by trial and epoch; `metric_` has what it measured.

    A metric that a running sweep measures for the first time while this is written waits for the next export.
    """
    names = sorted({name for row in _measurements(store, sweep.id) for name in row.metrics})
    columns = {"number": int, "epoch": int, "attempt": int, "seconds": float, "recorded_at": datetime}
    rows = (
        [row.trial_number, row.epoch, row.attempt, row.seconds, _moment(row.recorded_at)]
        + [row.metrics.get(name) for name in names]
        for row in _measurements(store, sweep.id)
    )
    return Table({**columns, **{f"metric_{name}": float for name in names}}, rows)


def stored_trials(store: Store, sweep: SweepRecord) -> Iterator[StoredTrial]:
    """The trials by number, as a file for Optuna takes them."""
    trials = list(_trials(store, sweep.id))  # before the curves: one that ends meanwhile has all of its own
    curves = store.curves(sweep.id, sweep.spec.metric)
    for trial in trials:
        assert trial.started_at is not None, f"trial {trial.number} is there and has not started"
        yield StoredTrial(
            number=trial.number,
            values=trial.parameters,
            is_baseline=trial.is_baseline,
            state=trial.state,
            reason=trial.reason,
            value=trial.value,
            curve=curves.get(trial.number, {}),
            started_at=trial.started_at,
            finished_at=trial.finished_at,
        )


def _trial_rows(store: Store, sweep: SweepRecord) -> Iterator[list[Cell]]:
    seconds = store.trained_seconds(sweep.id)
    for trial in _trials(store, sweep.id):
        config = sweep.spec.space.trial_config(trial.parameters, sweep.spec.seed)
        yield [
            trial.number,
            trial.state,
            trial.reason,
            trial.value,
            _standard_error(trial),
            trial.is_baseline,
            trial.attempt,
            trial.last_epoch,
            seconds.get(trial.number, 0.0),
            _moment(trial.started_at),
            _moment(trial.finished_at),
            *config.model_dump().values(),
        ]


def _standard_error(trial: TrialRecord) -> float | None:
    """Of the value, as the ranking has it."""
    num_images = int(trial.metrics.get("num_validation_images", 1))
    return None if trial.value is None else standard_error(trial.value, num_images)


def _trials(store: Store, sweep_id: str) -> Iterator[TrialRecord]:
    token = None
    while True:
        page = store.trials(sweep_id, page_size=_PAGE_TRIALS, page_token=token)
        yield from page.items
        token = page.next_token
        if token is None:
            return


def _measurements(store: Store, sweep_id: str) -> Iterator[MeasurementRecord]:
    after = None
    while page := store.measurements(sweep_id, after=after, limit=_PAGE_MEASUREMENTS):
        yield from page
        after = (page[-1].trial_number, page[-1].epoch)


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _kind(annotation: Any) -> type:
    """The type of a field's cells: for `int | None` and for a Literal that of the first it may be."""
    first = next(iter(get_args(annotation)), annotation)
    return first if isinstance(first, type) else type(first)
