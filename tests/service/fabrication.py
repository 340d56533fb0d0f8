"""Sweeps that never ran: rows, checkpoints and logs as a driver would have left them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from care_sweep.layout import trial_prefix
from care_sweep.search.catalog import resolve_sweep
from care_sweep.spec import CheckpointReference, Measurement, SweepState, TrialState
from care_sweep.storage import Storage, open_storage
from care_sweep.store import Lease, Store, SweepRecord

SPACE: Mapping[str, Any] = {
    "name": "two-knobs",
    "parameters": {
        "temperature": {"type": "float", "low": 0.05, "high": 1.0, "log": True, "default": 0.5},
        "equivariance_weight": {"type": "float", "low": 0.01, "high": 10, "log": True, "default": 0.3},
    },
    "fixed": {"dataset": "cifar10-mini", "epochs": 2},
    "baselines": [{"equivariance_weight": 0.0}],
}


def document(**changes: Any) -> dict[str, Any]:
    """A sweep that is accepted, with these changes; `space__fixed=...` reaches into the space."""
    space = {
        key.removeprefix("space__"): value for key, value in changes.items() if key.startswith("space__")
    }
    rest = {key: value for key, value in changes.items() if not key.startswith("space__")}
    return {"name": "first look", "space": {**SPACE, **space}, "num_trials": 4, **rest}


@dataclass(frozen=True)
class Fabricator:
    """Plays the runner and the driver of a store."""

    store: Store
    storage_uri: str

    @property
    def storage(self) -> Storage:
        return open_storage(self.storage_uri)

    def queued(self, **changes: Any) -> SweepRecord:
        record, _ = self.store.submit(resolve_sweep(document(**changes)))
        return record

    def claimed(self, **changes: Any) -> Lease:
        lease = self.store.claim(self.queued(**changes), "a test")
        assert lease is not None
        return lease

    def trial(self, lease: Lease, number: int, value: float, checkpoint: bytes | None = None) -> None:
        """A trial that ran its two epochs and is COMPLETE; number 0 is the baseline."""
        parameters = {"temperature": 0.5, "equivariance_weight": 0.1 * number}
        lease.start_attempt(number, 1, parameters, is_baseline=number == 0)
        self.log(lease.sweep_id, number, f"trial {number} begins\n")
        metrics = {"validation_knn_accuracy": value, "num_validation_images": 400.0, "train_loss": 1.0}
        lease.record(number, 1, Measurement(epoch=1, metrics=metrics, seconds=1.5))
        reference = None if checkpoint is None else self.checkpoint(lease.sweep_id, number, checkpoint)
        last = Measurement(epoch=2, metrics=metrics, seconds=1.5, checkpoint=reference)
        lease.record(number, 1, last, state=TrialState.COMPLETE, value=value)

    def finished(self, values: Sequence[float] = (0.3, 0.5, 0.4, 0.2)) -> str:
        """A sweep that SUCCEEDED with these values; each trial has a checkpoint."""
        lease = self.claimed(num_trials=len(values))
        for number, value in enumerate(values):
            self.trial(lease, number, value, contents(number))
        lease.finish_sweep(SweepState.SUCCEEDED)
        return lease.sweep_id

    def checkpoint(self, sweep_id: str, number: int, content: bytes) -> CheckpointReference:
        self.storage.put(f"{trial_prefix(sweep_id, number)}/attempt-1/checkpoint.tar", content)
        return CheckpointReference(
            name="attempt-1/checkpoint.tar",
            sha256=hashlib.sha256(content).hexdigest(),
            size_bytes=len(content),
        )

    def log(self, sweep_id: str, number: int, text: str, attempt: int = 1) -> None:
        key = f"{trial_prefix(sweep_id, number)}/attempt-{attempt}/log.txt"
        self.storage.put(key, text.encode(), overwrite=True)


def contents(number: int) -> bytes:
    """A checkpoint's bytes: 700 kB, so that it takes several chunks."""
    return bytes((number * 31 + index) % 251 for index in range(7000)) * 100
