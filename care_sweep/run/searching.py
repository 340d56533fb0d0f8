"""What does the search hear of a sweep's trials, and what does it answer? Points, early stops, their cost.

Baselines never come here.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from care_sweep.search.asha import SuccessiveHalving
from care_sweep.search.study import Study
from care_sweep.spec import Scalar, SweepSpec, TrialState
from care_sweep.store import TrialRecord

__all__ = ["Searching"]


class Searching:
    """One sweep's study and its early stopping, if it has any."""

    def __init__(self, spec: SweepSpec, clock: Callable[[], float] = time.monotonic) -> None:
        self._study = Study(spec.space, spec.seed)
        stopping = spec.early_stopping
        self._halving = SuccessiveHalving(stopping, spec.epochs) if stopping else None
        self._clock = clock
        self._seconds = 0.0

    def ask(self, number: int) -> Mapping[str, Scalar]:
        """The point that trial `number` shall try."""
        with self._timed():
            return self._study.ask(number)

    def enter(self, number: int, parameters: Mapping[str, Scalar]) -> None:
        """Trial `number` tries a point that a user enqueued."""
        self._study.restore(number, parameters, TrialState.RUNNING, {}, None)

    def restore(self, record: TrialRecord, curve: Mapping[int, float], last_value: float | None) -> None:
        """A stored trial, with what it measured by epoch."""
        value = last_value if record.state is TrialState.INFEASIBLE else record.value
        self._study.restore(record.number, record.parameters, record.state, curve, value)
        for epoch, measured in sorted(curve.items()):
            self.enter_rung(record.number, epoch, measured)

    def stops(self, number: int, epoch: int, value: float) -> bool:
        """Whether an open trial shall end here, with what it has measured."""
        return self._halving is not None and self._halving.observe(number, epoch, value)

    def enter_rung(self, number: int, epoch: int, value: float) -> None:
        """What a trial measured that is not to be stopped here: it ends anyway, or has gone on from here."""
        if self._halving is not None:
            self._halving.refill(number, epoch, value)

    def measured(self, number: int, epoch: int, value: float) -> None:
        with self._timed():
            self._study.report(number, epoch, value)

    def ended(self, number: int, state: TrialState, value: float | None) -> None:
        with self._timed():
            self._study.end(number, state, value)

    def take_seconds(self) -> float:
        """Those that it took since this was last asked; what the sweep's last trial took is not kept."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = self._clock()
        yield
        self._seconds += self._clock() - began
