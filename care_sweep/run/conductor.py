"""What happens to a trial between being proposed and being stored: a trial's whole life, free of Ray.

The conductor is the only writer of its sweep. At each step the store hears first, then the search, and only
then may the trial go on; whatever dies in between, a new conductor rebuilt from the store takes it up there.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from care_sweep.layout import discard_training_states, trial_directory
from care_sweep.search.asha import SuccessiveHalving
from care_sweep.search.study import Study
from care_sweep.spec import Measurement, Scalar, SweepSpec, TrialConfig, TrialState
from care_sweep.store import Lease, Store, TrialRecord

__all__ = ["MAX_LOSSES", "Assignment", "Conductor"]

_LOG = logging.getLogger(__name__)

MAX_LOSSES = 4
"""So many attempts of a trial may end with their worker before it has failed; its own failures are final."""

_FIRST_PAUSE_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 60.0
_WORKER_LOST = "worker lost"


_COLLAPSED = "collapsed"
"""A worker's reason that makes a trial INFEASIBLE: its point breaks a constraint, and nothing went wrong."""


@dataclass(frozen=True)
class Assignment:
    """One attempt at one trial, as a worker is told of it. It goes on after `last_epoch`."""

    number: int
    attempt: int
    config: TrialConfig
    directory: Path
    last_epoch: int


@dataclass
class _OpenTrial:
    parameters: Mapping[str, Scalar]
    is_baseline: bool
    attempt: int
    last_epoch: int = 0
    num_losses: int = 0
    last_value: float | None = None


class Conductor:
    """Runs one sweep's trials from the store's point of view. Used from one thread.

    `next` proposes attempts; `measured`, `failed`, `interrupted` and `lost` hear what became of them.
    """

    def __init__(
        self,
        store: Store,
        lease: Lease,
        storage: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        sweep = store.sweep(lease.sweep_id)
        self.spec: SweepSpec = sweep.spec
        self._lease = lease
        self._storage = storage
        self._clock = clock
        started = sweep.started_at if sweep.started_at is not None else store.clock()
        self._started = clock() - max(0.0, store.clock() - started)
        self._study = Study(self.spec.space, self.spec.seed)
        stopping = self.spec.early_stopping
        self._halving = SuccessiveHalving(stopping, self.spec.epochs) if stopping else None
        self._open: dict[int, _OpenTrial] = {}
        self._again: deque[int] = deque()
        self._num_started = 0
        self._has_cancelled = False
        self._pause_seconds = 0.0
        self._paused_until = clock()
        self._replay(store)

    # --- what to do next ---

    @property
    def is_finished(self) -> bool:
        """Nothing is open and nothing more will be proposed."""
        return not self._open and (self._num_started >= self.spec.num_trials or self.is_out_of_budget)

    @property
    def is_out_of_budget(self) -> bool:
        budget = self.spec.budget
        return budget is not None and self._clock() - self._started >= budget.max_seconds

    @property
    def has_cut_short(self) -> bool:
        """The budget was spent before all trials had run."""
        left_out = self._num_started < self.spec.num_trials
        return self._has_cancelled or (left_out and self.is_out_of_budget)

    @property
    def num_running(self) -> int:
        return len(self._open) - len(self._again)

    def next(self) -> Assignment | None:
        """The next attempt to run, stored as RUNNING; None when there is nothing to start now.

        Interrupted trials go first, then the baselines, then what the search suggests.
        """
        if self.is_out_of_budget:
            self._give_up_waiting()
            return None
        if self._clock() < self._paused_until:
            return None
        if self._again:
            number = self._again.popleft()
            self._open[number].attempt += 1
        elif self._num_started < self.spec.num_trials:
            number = self._propose()
        else:
            return None
        return self._start(number)

    # --- what became of it ---

    def measured(self, number: int, attempt: int, measurement: Measurement) -> bool:
        """Store what an epoch reported. True when the trial ends here and its worker must stop."""
        if not self._is_current(number, attempt):
            return True
        trial = self._open[number]
        if measurement.epoch <= trial.last_epoch:
            return False  # an attempt that found no training state retraces epochs that are stored
        value = measurement.metrics.get(self.spec.metric)
        state = self._verdict(number, trial, measurement.epoch, value)
        final = value if state is TrialState.COMPLETE else None
        self._lease.record(number, attempt, measurement, state=state, value=final)
        self._remember(number, measurement.epoch, value)
        self._get_on()
        if state is not None:
            self._close(number, state, final)
        return state is not None

    def failed(
        self,
        number: int,
        attempt: int,
        *,
        reason: str,
        message: str,
        measurement: Measurement | None = None,
    ) -> None:
        """A trial's own failure, which would come again: FAILED, or INFEASIBLE where it collapsed.

        What was measured at that is stored first, so that the search learns of a point it must avoid.
        """
        if not self._is_current(number, attempt):
            return
        trial = self._open[number]
        if measurement is not None and measurement.epoch > trial.last_epoch:
            value = measurement.metrics.get(self.spec.metric)
            self._lease.record(number, attempt, measurement)
            if self._halving is not None and not trial.is_baseline and value is not None:
                self._halving.refill(number, measurement.epoch, value)
            self._remember(number, measurement.epoch, value)
        state = TrialState.INFEASIBLE if reason == _COLLAPSED else TrialState.FAILED
        self._lease.finish_trial(number, state, reason=reason, message=message)
        self._close(number, state, trial.last_value)

    def lost(self, number: int, attempt: int, message: str) -> None:
        """The attempt ended without a word, and not by the trial's fault: again, up to MAX_LOSSES."""
        if not self._is_current(number, attempt):
            return
        self._open[number].num_losses += 1
        if self._open[number].num_losses < MAX_LOSSES:
            self._lease.interrupt_trial(number, reason=_WORKER_LOST, message=message)
            self._again.append(number)
        else:
            self.failed(number, attempt, reason=_WORKER_LOST, message=message)

    def interrupted(self, number: int, attempt: int, message: str) -> None:
        """The disk took no more: the sweep says so and pauses, then tries again; the trial loses nothing."""
        if not self._is_current(number, attempt):
            return
        self._lease.interrupt_trial(number, reason="storage", message=message)
        self._again.append(number)
        self._lease.explain(message)
        doubled = 2 * self._pause_seconds
        self._pause_seconds = min(max(doubled, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
        self._paused_until = self._clock() + self._pause_seconds

    def explain(self, message: str | None) -> None:
        """Let the sweep say why nothing can start, or with None that something can."""
        self._lease.explain(message)

    # --- inside ---

    def _get_on(self) -> None:
        if self._pause_seconds:
            self._pause_seconds = 0.0
            self._lease.explain(None)

    def _propose(self) -> int:
        number = self._num_started
        baselines = self.spec.space.baselines
        if number < len(baselines):
            parameters = self.spec.space.baseline_values(baselines[number])
        else:
            parameters = self._study.ask(number)
        self._open[number] = _OpenTrial(parameters, number < len(baselines), attempt=1)
        self._num_started += 1
        return number

    def _start(self, number: int) -> Assignment:
        trial = self._open[number]
        self._lease.start_attempt(number, trial.attempt, trial.parameters, is_baseline=trial.is_baseline)
        config = self.spec.space.trial_config(trial.parameters, self.spec.seed)
        return Assignment(number, trial.attempt, config, self._trial_directory(number), trial.last_epoch)

    def _verdict(self, number: int, trial: _OpenTrial, epoch: int, value: float | None) -> TrialState | None:
        if epoch >= self.spec.epochs:
            assert value is not None, f"the last epoch of trial {number} lacks {self.spec.metric}"
            return TrialState.COMPLETE
        if self.is_out_of_budget:
            self._has_cancelled = True
            return TrialState.CANCELLED
        if self._halving is None or trial.is_baseline or value is None:
            return None
        return TrialState.PRUNED if self._halving.observe(number, epoch, value) else None

    def _remember(self, number: int, epoch: int, value: float | None) -> None:
        trial = self._open[number]
        trial.last_epoch = epoch
        if value is not None:
            trial.last_value = value
            if not trial.is_baseline:
                self._study.report(number, epoch, value)

    def _close(self, number: int, state: TrialState, value: float | None) -> None:
        trial = self._open.pop(number)
        discard_training_states(self._trial_directory(number))
        if trial.is_baseline:
            return
        if state is TrialState.COMPLETE and value is not None:
            self._study.complete(number, value)
        elif state is TrialState.PRUNED:
            self._study.prune(number)
        elif state is TrialState.INFEASIBLE:
            self._study.infeasible(number, value)
        else:
            self._study.fail(number)

    def _give_up_waiting(self) -> None:
        self._has_cancelled |= bool(self._again)
        while self._again:
            number = self._again.popleft()
            self._lease.finish_trial(number, TrialState.CANCELLED, reason="budget spent")
            self._close(number, TrialState.CANCELLED, None)

    def _trial_directory(self, number: int) -> Path:
        return trial_directory(self._storage, self._lease.sweep_id, number)

    def _is_current(self, number: int, attempt: int) -> bool:
        waits = number in self._again
        return number in self._open and self._open[number].attempt == attempt and not waits

    def _replay(self, store: Store) -> None:
        curves: dict[int, dict[int, float]] = {}
        for row in store.measurements(self._lease.sweep_id):
            if self.spec.metric in row.metrics:
                curves.setdefault(row.trial_number, {})[row.epoch] = row.metrics[self.spec.metric]
        for record in store.trials(self._lease.sweep_id).items:
            self._replay_trial(record, curves.get(record.number, {}))
        for number, trial in self._open.items():
            attempts = store.attempts(self._lease.sweep_id, number)
            trial.num_losses = sum(attempt.reason == _WORKER_LOST for attempt in attempts)

    def _replay_trial(self, record: TrialRecord, curve: Mapping[int, float]) -> None:
        self._num_started = max(self._num_started, record.number + 1)
        last_value = curve[max(curve)] if curve else None
        if not record.is_baseline:
            value = last_value if record.state is TrialState.INFEASIBLE else record.value
            self._study.restore(record.number, record.parameters, record.state, curve, value)
            for epoch, value in sorted(curve.items()):
                if self._halving is not None:
                    self._halving.refill(record.number, epoch, value)
        if not record.state.is_terminal:
            self._open[record.number] = _OpenTrial(
                record.parameters,
                record.is_baseline,
                record.attempt,
                record.last_epoch,
                last_value=last_value,
            )
            self._again.append(record.number)
            _LOG.info("trial %d goes on after epoch %d", record.number, record.last_epoch)
