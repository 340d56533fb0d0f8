"""How would a sweep have gone, had its trials measured what recorded ones did? In virtual time.

The search and the early stopping are the service's own, told of epochs and ends as its driver tells them
(`care_sweep.run.conductor`). A proposal is answered by the nearest recorded configuration that the sweep has
not had yet, and the search hears that it was this one which ran: it never learns a value at a wrong point.
"""

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from curves import Curve, point

from care_sweep.search.asha import SuccessiveHalving
from care_sweep.search.study import Study
from care_sweep.spec import EarlyStopping, Scalar, SearchSpace, TrialState

__all__ = ["METRIC", "Ended", "Pool", "Search", "Searching", "best_within", "seconds_until", "simulate"]

METRIC = "validation_knn_accuracy"
_ALWAYS_AT_RANDOM = 10**9  # trials before TPE begins


@dataclass(frozen=True)
class Ended:
    """One trial's end.

    Attributes:
        curve: which recorded run it was.
        spent_seconds: what all trials have taken until then, those that run included.
        value: of the last epoch; None unless COMPLETE.
    """

    curve: int
    state: TrialState
    spent_seconds: float
    value: float | None


class Searching(Protocol):
    """What a sweep asks and tells; trials are numbered 0, 1, 2 as they begin."""

    def propose(self, number: int) -> Mapping[str, Scalar]:
        """Where trial `number` should be."""

    def begin(self, number: int, parameters: Mapping[str, Scalar]) -> None:
        """It runs, and this is where."""

    def measured(self, number: int, epoch: int, value: float) -> bool:
        """An epoch of it that is not its last; True: it stops here."""

    def end(self, number: int, state: TrialState, last_epoch: int, value: float | None) -> None:
        """It is over; `value` is what its last epoch measured, if it could be measured."""


class Search:
    """The service's.

    Args:
        seed: the sweep's.
        is_random: draw all points at random; those that TPE begins with are the same.
        early_stopping: None runs all trials at full length.
        epochs: the full length.
    """

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        *,
        is_random: bool,
        early_stopping: EarlyStopping | None,
        epochs: int,
    ) -> None:
        self._study = Study(space, seed, num_startup_trials=_ALWAYS_AT_RANDOM if is_random else None)
        self._halving = SuccessiveHalving(early_stopping, epochs) if early_stopping else None

    def propose(self, number: int) -> Mapping[str, Scalar]:
        asked = self._study.ask(2 * number)
        self._study.fail(2 * number)  # nothing is learnt of it: another point will run
        return asked

    def begin(self, number: int, parameters: Mapping[str, Scalar]) -> None:
        self._study.restore(2 * number + 1, parameters, TrialState.RUNNING, {}, None)

    def measured(self, number: int, epoch: int, value: float) -> bool:
        stops = self._halving is not None and self._halving.observe(number, epoch, value)
        self._study.report(2 * number + 1, epoch, value)
        return stops

    def end(self, number: int, state: TrialState, last_epoch: int, value: float | None) -> None:
        entered = 2 * number + 1
        if state is TrialState.PRUNED:
            self._study.prune(entered)
        elif value is None:
            self._study.fail(entered)
        elif state is TrialState.COMPLETE:
            self._study.report(entered, last_epoch, value)
            self._study.complete(entered, value)
        else:
            if self._halving is not None:
                self._halving.refill(number, last_epoch, value)
            self._study.report(entered, last_epoch, value)
            self._study.infeasible(entered, value)


class Pool:
    """The recorded runs that a sweep has not had yet."""

    def __init__(self, space: SearchSpace, curves: Iterable[Curve]) -> None:
        self._space = space
        self._left = {curve.number: (curve, point(space, curve.parameters)) for curve in curves}

    def __len__(self) -> int:
        return len(self._left)

    def take(self, values: Mapping[str, Scalar]) -> Curve:
        """The nearest to these values; of several the first recorded."""
        wanted = point(self._space, values)
        nearest = min(self._left, key=lambda number: math.dist(wanted, self._left[number][1]))
        return self._left.pop(nearest)[0]


def simulate(pool: Pool, search: Searching, num_workers: int) -> list[Ended]:
    """Run a sweep until no recorded run is left; its trials' ends in the order of time.

    A worker that is free takes the next trial at once. Searching takes no time.
    """
    ended: list[Ended] = []
    running: dict[int, Curve] = {}
    events: list[tuple[float, int, int]] = []  # when, trial, index of the epoch that is over then
    now = spent = 0.0
    num_begun = 0

    def begin() -> None:
        nonlocal num_begun
        curve = pool.take(search.propose(num_begun))
        search.begin(num_begun, curve.parameters)
        running[num_begun] = curve
        heapq.heappush(events, (now + curve.seconds[0], num_begun, 0))
        num_begun += 1

    while len(pool) and len(running) < num_workers:
        begin()
    while events:
        before, (now, number, index) = now, heapq.heappop(events)
        spent += (now - before) * len(running)
        curve = running[number]
        state, value = _verdict(curve, number, index, search)
        if state is None:
            heapq.heappush(events, (now + curve.seconds[index + 1], number, index + 1))
            continue
        search.end(number, state, index + 1, value)
        ended.append(Ended(curve.number, state, spent, value if state is TrialState.COMPLETE else None))
        del running[number]
        if len(pool):
            begin()
    return ended


def _verdict(
    curve: Curve, number: int, index: int, search: Searching
) -> tuple[TrialState | None, float | None]:
    """How the trial ends with this epoch, None: it goes on; and what the epoch measured."""
    values = curve.metrics[METRIC]
    value = values[index] if index < len(values) else None
    if index == len(curve.seconds) - 1:
        return curve.state, value
    assert value is not None, "only the last epoch of a failed run measures nothing"
    return (TrialState.PRUNED if search.measured(number, index + 1, value) else None), value


def seconds_until(ended: Iterable[Ended], target: float) -> float | None:
    """What was spent until a trial had run at full length and reached the target; None: none did."""
    return next((one.spent_seconds for one in ended if one.value is not None and one.value >= target), None)


def best_within(ended: Iterable[Ended], seconds: float) -> float | None:
    """The best value of the trials that were COMPLETE by then; None: there was none."""
    found = [one.value for one in ended if one.value is not None and one.spent_seconds <= seconds]
    return max(found, default=None)
