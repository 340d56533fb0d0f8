"""What happens to a trial between being proposed and being stored: a trial's whole life, free of Ray.

The conductor is the only writer of its sweep. At each step the store hears first, then the search, and only
then may the trial go on; whatever dies in between, a new conductor rebuilt from the store takes it up there.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence

from care_sweep.errors import DatabaseUnavailable
from care_sweep.layout import discard_training_states, trial_prefix
from care_sweep.run.holdups import HoldUps
from care_sweep.run.keeping import KeptCheckpoints
from care_sweep.run.open_trials import Assignment, OpenTrial, OpenTrials
from care_sweep.run.room import Room
from care_sweep.run.searching import Searching
from care_sweep.run.spending import SPENT, Spending
from care_sweep.search.retention import CompleteTrial
from care_sweep.spec import (
    CheckpointReference,
    Measurement,
    Place,
    Scalar,
    SweepSpec,
    SweepState,
    TrialState,
)
from care_sweep.storage import Storage
from care_sweep.store import DemandRecord, Lease, Store, TrialRecord

__all__ = ["Conductor"]

_LOG = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
_WORKER_LOST = "worker lost"
_OUT_OF_MEMORY = "out of memory"
_NODE_DRAINED = "node drained"
_LOSSES = (_WORKER_LOST, _OUT_OF_MEMORY)
_STOPPED = "stopped"

_COLLAPSED = "collapsed"
"""A worker's reason that makes a trial INFEASIBLE: its point breaks a constraint, and nothing went wrong."""


class Conductor:
    """Runs one sweep's trials from the store's point of view. Used from one thread.

    `next` proposes attempts; `measured`, `failed`, `interrupted`, `lost` and `displaced` hear what became of
    them. `look` hears the wishes of users, at most twice a second.

    Attributes:
        revision: the last whose wishes were heard.
        room: what the sweep has of the cluster.
        gpus_per_trial: what an attempt holds of a GPU, to be set before the first.
        gpus_noted: what `note_gpus` of an earlier driver said that is.
    """

    def __init__(
        self,
        store: Store,
        lease: Lease,
        storage: Storage,
        clock: Callable[[], float] = time.monotonic,
        *,
        num_checkpoints_kept: int | None = None,
    ) -> None:
        sweep = store.sweep(lease.sweep_id)
        self.spec: SweepSpec = sweep.spec
        self.gpus_per_trial = 0.0
        self.gpus_noted = sweep.gpus_per_trial
        self._open = OpenTrials()
        self.room = Room(self._open.places, clock)
        self._store = store
        self._lease = lease
        self._storage = storage
        self._clock = clock
        self._spending = Spending(sweep.active_seconds, sweep.gpu_seconds, clock)
        self._hold_ups = HoldUps(lease, sweep.message, clock)
        self._search = Searching(self.spec, clock)
        self.revision, self._looked_at = 0, -math.inf
        self._state = sweep.state
        self._enqueued: dict[int, Mapping[str, Scalar]] = {}
        self._stop_requested: frozenset[int] = frozenset()
        self._checkpoints = KeptCheckpoints(lease, storage, num_checkpoints_kept)
        self._num_started = 0
        self._num_ended = 0
        self._cut: str | None = None
        self._was_cut: str | None = None  # with an earlier driver
        self._is_handing_over = False
        self._replay(store)
        self._checkpoints.drop_surplus()
        self.look()

    # --- what to do next ---

    @property
    def sweep_id(self) -> str:
        return self._lease.sweep_id

    @property
    def is_finished(self) -> bool:
        """Nothing runs, and nothing will be proposed to this driver any more."""
        if self.is_paused or self._is_handing_over:
            return self.num_running == 0
        return self.is_over

    @property
    def is_over(self) -> bool:
        """No trial is open, and none will begin."""
        nothing_new = self.is_draining or self._num_started >= self.spec.num_trials or self.is_out_of_budget
        return not self._open and nothing_new

    @property
    def is_paused(self) -> bool:
        """A user wants the sweep to stand still: what waits goes on with another driver, once resumed."""
        return self._state is SweepState.PAUSED

    @property
    def is_draining(self) -> bool:
        """A user wants no new trial."""
        return self._state is SweepState.STOPPING

    @property
    def is_handing_over(self) -> bool:
        """What runs and waits goes on with a fresh driver."""
        return self._is_handing_over

    @property
    def spent(self) -> str | None:
        """Why it may have no more, if so: its budget or the quota of its token."""
        return self._spending.why_no_more(self.spec.budget)

    @property
    def is_out_of_budget(self) -> bool:
        return self.spent is not None

    @property
    def cut_short(self) -> str | None:
        """What was spent before all trials had run."""
        left_out = self._num_started < self.spec.num_trials and not self.is_draining
        was_cut = None if self._num_ended else self._was_cut  # else it went on with more
        return self._cut or was_cut or (self.spent if left_out else None)

    @property
    def seconds(self) -> float:
        """In which this conductor had trials run: neither waiting nor pauses count."""
        return self._spending.seconds

    @property
    def is_held_up(self) -> bool:
        """Something is to be mended, such as a storage that takes nothing, and is tried again later."""
        return self._hold_ups.is_paused

    @property
    def num_running(self) -> int:
        return self._open.num_running

    @property
    def num_ended(self) -> int:
        """Trials that ended with this conductor."""
        return self._num_ended

    @property
    def most_at_once(self) -> int:
        """Trials, as far as there is room."""
        return self.room.most_at_once(self.spec.max_concurrent_trials)

    @property
    def has_room(self) -> bool:
        """One more trial may run."""
        return self.num_running < self.most_at_once

    def demands(self) -> Sequence[DemandRecord] | None:
        """What all active sweeps want, of which this is one; None while nobody can tell."""
        try:
            found = self._store.demands()
        except DatabaseUnavailable:
            return None
        ours = [one for one in found if one.id == self.sweep_id]
        self._spending.is_quota_spent = any(one.is_quota_spent for one in ours)
        return found

    def hand_over(self) -> None:
        """Begin nothing more; running trials are interrupted as they report, and a fresh driver goes on."""
        self._is_handing_over = True

    def look(self) -> None:
        """Hear what users want since the last look; trials that wait and shall stop end here."""
        self._spending.tick(is_running=self.num_running > 0)
        self.room.look()
        if self._clock() - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = self._clock()
        try:
            wishes = self._store.wishes(self._lease.sweep_id, seen=self.revision)
        except DatabaseUnavailable:
            return  # nobody can wish anything now; the next write waits, and says so
        if wishes is None:
            return
        self.revision, self._state, self.spec = wishes.revision, wishes.state, wishes.spec
        self._enqueued = dict(wishes.enqueued)
        self._stop_requested = wishes.stop_requested
        for number in self._open.waiting:
            if number in wishes.stop_requested:
                self._cancel(number, _STOPPED)

    def next(self) -> Assignment | None:
        """The next attempt to run, stored as RUNNING; None when there is nothing to start now.

        Interrupted trials go first, then the baselines, what users enqueued, and what the search suggests.
        """
        self.look()
        if self.is_out_of_budget:
            self._give_up_waiting()
            return None
        if self.is_paused or self._is_handing_over or self.is_held_up:
            return None
        ready = self._open.go_on(self._clock())
        if ready is not None:
            return self._start(ready)
        if self.is_draining or self._num_started >= self.spec.num_trials:
            return None
        return self._start_new()

    # --- what became of it ---

    def placed(self, number: int, attempt: int, place: Place) -> None:
        """Store where an attempt runs, so that it is found in Ray's dashboard while it does."""
        if self.runs(number, attempt):
            self._lease.place_attempt(number, attempt, place)
            self._open[number].spot = place.spot

    def measured(self, number: int, attempt: int, measurement: Measurement) -> bool:
        """Store what an epoch reported. True when the trial ends here and its worker must stop."""
        if not self.runs(number, attempt):
            return True
        self.look()
        trial = self._open[number]
        if measurement.epoch <= trial.last_epoch:
            self._retraced(number, trial)
            return not self.runs(number, attempt)
        value = measurement.metrics.get(self.spec.metric)
        state, reason = self._verdict(number, trial, measurement.epoch, value)
        final = value if state is TrialState.COMPLETE else None
        self._record(number, attempt, measurement, state=state, value=final, reason=reason)
        self._remember(number, measurement.epoch, value)
        self._hold_ups.gets_on()
        if state is not None:
            self._close(number, state, final)
            self._note_checkpoint(number, final, trial.is_baseline, measurement.checkpoint)
            self._checkpoints.drop_surplus()
        elif interruption := self._interruption(trial):
            self._interrupt(number, interruption)
        return not self.runs(number, attempt)

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
        if not self.runs(number, attempt):
            return
        trial = self._open[number]
        if measurement is not None and measurement.epoch > trial.last_epoch:
            value = measurement.metrics.get(self.spec.metric)
            self._record(number, attempt, measurement)
            self._hold_ups.gets_on()
            if not trial.is_baseline and value is not None:
                self._search.enter_rung(number, measurement.epoch, value)
            self._remember(number, measurement.epoch, value)
        state = TrialState.INFEASIBLE if reason == _COLLAPSED else TrialState.FAILED
        self._lease.finish_trial(number, state, reason=reason, message=message)
        self._close(number, state, trial.last_value)

    def lost(self, number: int, attempt: int, message: str, *, reason: str = _WORKER_LOST) -> None:
        """The attempt ended, and not by the trial's fault: again after a while, up to MAX_LOSSES."""
        if not self.runs(number, attempt):
            return
        if self._open[number].lose(self._clock(), wanted_memory=reason == _OUT_OF_MEMORY):
            self._interrupt(number, reason, message)
        else:
            self.failed(number, attempt, reason=reason, message=message)

    def runs(self, number: int, attempt: int) -> bool:
        """Whether nothing has been heard yet of how this attempt ended."""
        return self._open.runs(number, attempt)

    def displaced(self, number: int, attempt: int, message: str) -> None:
        """The attempt's node was taken away, as somebody meant it to be: again at once, and no loss."""
        if self.runs(number, attempt):
            self._interrupt(number, _NODE_DRAINED, message)

    def interrupted(self, number: int, attempt: int, message: str, *, reason: str = "storage") -> None:
        """Something that is not the trial's is to be mended, as a storage that takes no more: the sweep says
        so, pauses and tries again; the trial loses nothing."""
        if not self.runs(number, attempt):
            return
        self._interrupt(number, reason, message)
        self._hold_ups.trouble(message)

    def explain(self, message: str | None) -> None:
        """Let the sweep say why nothing can start, or with None that something can."""
        self._hold_ups.waits(message)

    def ready(self, is_ready: bool) -> None:
        """Say that trials can begin, or that they cannot."""
        self._lease.ready(is_ready)

    def note_gpus(self, gpus_per_trial: float, message: str | None = None) -> None:
        """Keep what was chosen, so that a driver that takes up the sweep chooses the same; and say why."""
        self.gpus_noted = gpus_per_trial
        self._lease.note_gpus(gpus_per_trial, message)

    # --- inside ---

    def _record(
        self,
        number: int,
        attempt: int,
        measurement: Measurement,
        *,
        state: TrialState | None = None,
        value: float | None = None,
        reason: str | None = None,
    ) -> None:
        """Store a measurement with what it cost."""
        gpus = self._gpus_of(self._open[number])
        times_larger = gpus / self.gpus_per_trial if self.gpus_per_trial else 1.0
        gpu_seconds = measurement.seconds * gpus
        self._lease.record(
            number,
            attempt,
            measurement,
            state=state,
            value=value,
            reason=reason,
            gpu_seconds=gpu_seconds,
            search_seconds=self._search.take_seconds(),
            share_seconds=measurement.seconds * self.room.share.cost * times_larger,
            least_share_seconds=self.room.share.least,
        )
        self._spending.gpu_seconds += gpu_seconds

    def _interruption(self, trial: OpenTrial) -> str | None:
        """Why a trial that has just reported shall wait now, if it shall."""
        if self.is_paused:
            return "paused"
        if self._is_handing_over:
            return "handed over"
        gives_way = self.room.gives_way(trial.spot, self.num_running)
        return "preempted" if gives_way else None

    def _interrupt(self, number: int, reason: str, message: str | None = None) -> None:
        self._lease.interrupt_trial(number, reason=reason, message=message)
        self._open.wait(number)

    def _cancel(self, number: int, reason: str) -> None:
        self._lease.finish_trial(number, TrialState.CANCELLED, reason=reason)
        self._close(number, TrialState.CANCELLED, None)

    def _retraced(self, number: int, trial: OpenTrial) -> None:
        """An attempt that found no state of the last epoch repeats epochs that are stored. It ends and waits
        as any other: what it left is gone on from."""
        if reason := self._why_cancelled(number):
            self._cancel(number, reason)
        elif interruption := self._interruption(trial):
            self._interrupt(number, interruption)

    def _start_new(self) -> Assignment:
        number = self._num_started
        baselines, point = self.spec.space.baselines, None
        if number < len(baselines):
            parameters: Mapping[str, Scalar] = self.spec.space.baseline_values(baselines[number])
        elif self._enqueued:
            point = next(iter(self._enqueued))
            parameters = self._enqueued.pop(point)
            self._search.enter(number, parameters)
        else:
            parameters = self._search.ask(number)
        self._open.open(number, OpenTrial(parameters, number < len(baselines), attempt=1))
        self._num_started += 1
        return self._start(number, enqueued_as=point)

    def _start(self, number: int, *, enqueued_as: int | None = None) -> Assignment:
        trial = self._open[number]
        trial.spot = None
        self._spending.tick(is_running=True)
        self._lease.start_attempt(
            number,
            trial.attempt,
            trial.parameters,
            is_baseline=trial.is_baseline,
            enqueued_as=enqueued_as,
            search_seconds=self._search.take_seconds(),
        )
        config = self.spec.space.trial_config(trial.parameters, self.spec.seed)
        prefix, gpus = self._trial_prefix(number), self._gpus_of(trial)
        return Assignment(number, trial.attempt, config, prefix, trial.last_epoch, gpus)

    def _gpus_of(self, trial: OpenTrial) -> float:
        """Where we chose the share of a GPU, a trial to which it was too small gets the whole of one."""
        if self.gpus_per_trial and trial.wants_memory and self.spec.resources.gpus_per_trial == "auto":
            return 1.0
        return self.gpus_per_trial

    def _verdict(
        self, number: int, trial: OpenTrial, epoch: int, value: float | None
    ) -> tuple[TrialState | None, str | None]:
        """How the trial ends here, if it does, and why."""
        if epoch >= self.spec.epochs:
            assert value is not None, f"the last epoch of trial {number} lacks {self.spec.metric}"
            return TrialState.COMPLETE, None
        if reason := self._why_cancelled(number):
            if not trial.is_baseline and value is not None:
                self._search.enter_rung(number, epoch, value)  # as a replay of what is stored does
            return TrialState.CANCELLED, reason
        if trial.is_baseline or value is None or not self._search.stops(number, epoch, value):
            return None, None
        return TrialState.PRUNED, None

    def _why_cancelled(self, number: int) -> str | None:
        """Why a trial that has just reported ends before its last epoch, if it does and not by its values."""
        if number in self._stop_requested:
            return _STOPPED
        if spent := self.spent:
            self._cut = spent
        return spent

    def _remember(self, number: int, epoch: int, value: float | None) -> None:
        trial = self._open[number]
        trial.last_epoch = epoch
        if value is not None:
            trial.last_value = value
            if not trial.is_baseline:
                self._search.measured(number, epoch, value)

    def _close(self, number: int, state: TrialState, value: float | None) -> None:
        trial = self._open.close(number)
        self._num_ended += 1
        discard_training_states(self._storage, self._trial_prefix(number))
        if not trial.is_baseline:
            self._search.ended(number, state, value)

    def _note_checkpoint(
        self, number: int, value: float | None, is_baseline: bool, checkpoint: CheckpointReference | None
    ) -> None:
        if value is not None and checkpoint is not None:
            key = f"{self._trial_prefix(number)}/{checkpoint.name}"
            self._checkpoints.add(CompleteTrial(number, value, is_baseline, key))

    def _give_up_waiting(self) -> None:
        if spent := self.spent:
            for number in self._open.waiting:
                self._cut = spent
                self._cancel(number, spent)

    def _trial_prefix(self, number: int) -> str:
        return trial_prefix(self._lease.sweep_id, number)

    def _replay(self, store: Store) -> None:
        curves = store.curves(self._lease.sweep_id, self.spec.metric)
        for record in store.trials(self._lease.sweep_id).items:
            self._replay_trial(record, curves.get(record.number, {}))
        for number, trial in self._open:
            attempts = store.attempts(self._lease.sweep_id, number)
            trial.num_losses = sum(attempt.reason in _LOSSES for attempt in attempts)
            trial.wants_memory = any(attempt.reason == _OUT_OF_MEMORY for attempt in attempts)

    def _replay_trial(self, record: TrialRecord, curve: Mapping[int, float]) -> None:
        self._num_started = max(self._num_started, record.number + 1)
        self._note_checkpoint(record.number, record.value, record.is_baseline, record.checkpoint)
        last_value = curve[max(curve)] if curve else None
        if not record.is_baseline:
            self._search.restore(record, curve, last_value)
        if record.state is TrialState.CANCELLED and record.reason in SPENT:
            self._was_cut = record.reason
        if not record.state.is_terminal:
            trial = OpenTrial(
                record.parameters,
                record.is_baseline,
                record.attempt,
                record.last_epoch,
                last_value=last_value,
            )
            self._open.open(record.number, trial)
            self._open.wait(record.number)
            _LOG.info("trial %d goes on after epoch %d", record.number, record.last_epoch)
