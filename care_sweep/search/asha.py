"""Is this trial worth going on with? Asynchronous successive halving.

Li et al., "A System for Massively Parallel Hyperparameter Tuning" (MLSys 2020, arXiv 1810.05934), in the
stopping form of Ray Tune's `ASHAScheduler` with one bracket: a trial that reaches a rung goes on if its value
is not below the (1 - 1/factor) quantile of the values recorded there before it; the first one always goes on.
"""

import math

import numpy as np

from care_sweep.spec import EarlyStopping

__all__ = ["SuccessiveHalving"]


class SuccessiveHalving:
    """The rungs of one sweep; larger values are better. In memory: refilled from the store after a restart.

    Decisions equal those of Ray's `ASHAScheduler(max_t=epochs)` for trials that report every epoch, also when
    a resumed trial repeats some. For a trial that jumps over a rung they may differ: Ray records its later
    values in the rung below, we leave that rung alone.

    Attributes:
        rungs: the epochs at which trials are judged, ascending, all before the last epoch: a trial that
            gets there is complete. Empty when the grace period covers the whole training.
    """

    def __init__(self, early_stopping: EarlyStopping, epochs: int) -> None:
        """`epochs` is the length of a trial that is not stopped."""
        self._recorded: dict[int, dict[int, float]] = {}
        milestone = early_stopping.grace_epochs
        while milestone < epochs:
            self._recorded[milestone] = {}
            milestone *= early_stopping.reduction_factor
        self.rungs = tuple(self._recorded)
        self._epochs = epochs
        self._percentile = (1 - 1 / early_stopping.reduction_factor) * 100

    def observe(self, number: int, epoch: int, value: float) -> bool:
        """Record what trial `number` reported after `epoch`; True means: stop it here.

        For every report of every trial but the baselines, in any order among trials. Only the first report at
        or past a rung is judged there: asking again answers False and changes nothing. A trial that was told
        to stop stays recorded, as a bar for later ones.
        """
        assert math.isfinite(value), f"trial {number} reported {value} at epoch {epoch}"
        recorded = self._rung(epoch)
        if recorded is None or number in recorded:
            return False
        others = list(recorded.values())
        recorded[number] = value
        return bool(others) and value < float(np.percentile(others, self._percentile))

    def refill(self, number: int, epoch: int, value: float) -> None:
        """Record a stored report, in order of epochs within a trial; its decision was taken when it came."""
        self.observe(number, epoch, value)

    def _rung(self, epoch: int) -> dict[int, float] | None:
        """What is recorded at the highest rung at or below `epoch`; None where no trial is judged."""
        reached = [milestone for milestone in self.rungs if milestone <= epoch < self._epochs]
        return self._recorded[reached[-1]] if reached else None
