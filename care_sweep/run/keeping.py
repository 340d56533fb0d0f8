"""Which checkpoints of a sweep are kept? The best of its trials, and its baselines'."""

from care_sweep.layout import discard
from care_sweep.search.retention import CompleteTrial, surplus
from care_sweep.storage import Storage
from care_sweep.store import Lease

__all__ = ["KeptCheckpoints"]


class KeptCheckpoints:
    """Those of one sweep's COMPLETE trials, `num_kept` of which stay; None is all."""

    def __init__(self, lease: Lease, storage: Storage, num_kept: int | None) -> None:
        self._lease, self._storage, self._num_kept = lease, storage, num_kept
        self._trials: dict[int, CompleteTrial] = {}

    def add(self, trial: CompleteTrial) -> None:
        self._trials[trial.number] = trial

    def drop_surplus(self) -> None:
        """The rows first: none may name what is gone. What cannot be deleted goes when a runner tidies up."""
        found = surplus(self._trials.values(), self._num_kept)
        if not found:
            return
        self._lease.forget_checkpoints([trial.number for trial in found])
        for trial in found:
            del self._trials[trial.number]
        discard(self._storage, [trial.key for trial in found], f"{len(found)} checkpoints")
