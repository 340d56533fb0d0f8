"""A sweep that never ran: the rows that a driver would have left, of as many trials as are asked for."""

from collections import defaultdict
from collections.abc import Iterator
from random import Random
from typing import Any

from sqlalchemy import Table, insert

from care_sweep.spec import (
    CategoricalParameter,
    FloatParameter,
    IntParameter,
    Parameter,
    Scalar,
    SearchSpace,
    SweepSpec,
    TrialState,
)
from care_sweep.store import Lease, Store, maintenance
from care_sweep.store.database import writing
from care_sweep.store.schema import attempts, events, measurements, metadata, trials

__all__ = ["fill"]

_METRICS = ("validation_knn_accuracy", "train_loss", "contrastive_loss", "equivariance_loss", "spread")
_ROWS_A_STATEMENT = 10_000


def fill(store: Store, spec: SweepSpec, num_trials: int, chance: Random) -> Lease:
    """The lease of a new sweep that has `num_trials` COMPLETE trials, each with all its epochs."""
    record, _ = store.submit(spec)
    lease = store.claim(record, "benchmark")
    assert lease is not None
    rows: dict[Table, list[dict[str, Any]]] = defaultdict(list)
    with writing(store.engine) as connection:
        for number in range(num_trials):
            for table, row in _rows_of_a_trial(spec, number, record.created_at, chance):
                rows[table].append({"sweep_id": lease.sweep_id, **row})
            if len(rows[events]) >= _ROWS_A_STATEMENT or number == num_trials - 1:
                for table in metadata.sorted_tables:  # parents before their children
                    if rows[table]:
                        connection.execute(insert(table), rows[table])
                rows.clear()
    problems = maintenance.check(store.engine)
    assert not problems, problems
    return lease


def _rows_of_a_trial(
    spec: SweepSpec, number: int, now: float, chance: Random
) -> Iterator[tuple[Table, dict[str, Any]]]:
    """All rows about one trial, without the sweep's id."""

    def told(kind: str, **data: Any) -> tuple[Table, dict[str, Any]]:
        return events, {"kind": kind, "data": {"number": number, **data}, "recorded_at": now}

    times = {"started_at": now, "finished_at": now}
    yield attempts, {"trial_number": number, "attempt": 1, **times}
    yield told("trial", state=TrialState.RUNNING, attempt=1)
    for epoch in range(1, spec.epochs + 1):
        metrics = {name: chance.random() for name in _METRICS} | {"num_validation_images": 400.0}
        measured = {"epoch": epoch, "attempt": 1, "metrics": metrics, "seconds": 1.5, "recorded_at": now}
        yield measurements, {"trial_number": number, **measured}
        yield told("measurement", epoch=epoch, metrics=metrics)
    end = {"state": TrialState.COMPLETE, "value": metrics[spec.metric]}
    yield told("trial", **end, reason=None, message=None)
    is_baseline = number < len(spec.space.baselines)
    trial = {"parameters": _point(spec.space, number, chance), "is_baseline": is_baseline, "attempt": 1}
    checkpoint = {"name": "attempt-1/checkpoint.tar", "sha256": "0" * 64, "size_bytes": 4_500_000}
    yield (
        trials,
        {"number": number, **trial, "last_epoch": spec.epochs, "checkpoint": checkpoint, **end, **times},
    )


def _point(space: SearchSpace, number: int, chance: Random) -> dict[str, Scalar]:
    if number < len(space.baselines):
        return space.baseline_values(space.baselines[number])
    return {name: _drawn(parameter, chance) for name, parameter in space.parameters.items()}


def _drawn(parameter: Parameter, chance: Random) -> Scalar:
    match parameter:
        case FloatParameter():
            return chance.uniform(parameter.low, parameter.high)
        case IntParameter():
            return chance.randint(parameter.low, parameter.high)
        case CategoricalParameter():
            return chance.choice(parameter.choices)
