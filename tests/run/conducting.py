"""A stored sweep in the hands of a conductor: what the conductor's tests start from and look at."""

from pathlib import Path
from typing import Any

import optuna

from care_sweep.documents import parse
from care_sweep.run.conductor import Conductor
from care_sweep.run.open_trials import Assignment
from care_sweep.spec import CheckpointReference, Measurement, SweepSpec
from care_sweep.storage import open_storage
from care_sweep.store import Lease, Store

EPOCHS = 4


def sweep_spec(**changes: Any) -> SweepSpec:
    """A sweep of one baseline and five searched trials, with these changes."""
    document: dict[str, Any] = {
        "name": "test",
        "space": {
            "parameters": {
                "equivariance_weight": {"type": "float", "low": 0.01, "high": 10, "log": True},
                "temperature": {"type": "float", "low": 0.05, "high": 1, "log": True, "default": 0.5},
            },
            "fixed": {"epochs": EPOCHS},
            "baselines": [{"equivariance_weight": 0.0}],
        },
        "num_trials": 6,
        "early_stopping": {"grace_epochs": 1, "reduction_factor": 2},
    }
    return parse(SweepSpec, document | changes)


class Clock:
    """Seconds that move only when a test moves them."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Sweep:
    """A stored sweep that can be conducted, abandoned and taken up again."""

    def __init__(self, store: Store, storage: Path, spec: SweepSpec) -> None:
        self.store, self.storage, self.clock = store, storage, Clock()
        self.id = store.submit(spec)[0].id

    def conduct(self, **options: Any) -> Conductor:
        lease = self.store.claim(self.store.sweep(self.id), "test")
        assert lease is not None
        self.lease: Lease = lease
        return Conductor(self.store, lease, open_storage(str(self.storage)), self.clock, **options)


def measure(conductor: Conductor, assignment: Assignment, epoch: int, value: float, **metrics: float) -> bool:
    checkpoint = None
    if epoch == EPOCHS:
        checkpoint = CheckpointReference(name="attempt-1/checkpoint.tar", sha256="0" * 64, size_bytes=1)
    metrics = {"validation_knn_accuracy": value, **metrics}
    measurement = Measurement(epoch=epoch, metrics=metrics, seconds=1.0, checkpoint=checkpoint)
    return conductor.measured(assignment.number, assignment.attempt, measurement)


def run(conductor: Conductor, assignment: Assignment, value: float) -> int:
    """Report until the trial ends; the epoch at which it did."""
    for epoch in range(assignment.last_epoch + 1, EPOCHS + 1):
        if measure(conductor, assignment, epoch, value):
            return epoch
    raise AssertionError("the trial did not end")


def next_of(conductor: Conductor) -> Assignment:
    assignment = conductor.next()
    assert assignment is not None
    return assignment


def told(conductor: Conductor) -> list[Any]:
    """What Optuna knows of the searched trials: state, value, and whether a constraint is violated."""
    told = [t for t in conductor._search._study._study.trials if t.state is not optuna.trial.TrialState.FAIL]
    return [(t.state.name, t.value, bool(t.constraints)) for t in told]
