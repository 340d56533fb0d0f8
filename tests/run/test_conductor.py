"""A trial's whole life, without Ray: the conductor between a real store and a real study."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from care_sweep.documents import parse
from care_sweep.errors import LeaseLost, StorageError
from care_sweep.run.conductor import MAX_LOSSES, Assignment, Conductor
from care_sweep.search.study import Study
from care_sweep.spec import CheckpointReference, Measurement, SweepSpec, SweepState, TrialState
from care_sweep.storage import open_storage
from care_sweep.store import Lease, Store, open_database

EPOCHS = 4


def _spec(**changes: Any) -> SweepSpec:
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


class _Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class _Sweep:
    """A stored sweep that can be conducted, abandoned and taken up again."""

    def __init__(self, store: Store, storage: Path, spec: SweepSpec) -> None:
        self.store, self.storage, self.clock = store, storage, _Clock()
        self.id = store.submit(spec)[0].id

    def conduct(self, **options: Any) -> Conductor:
        lease = self.store.claim(self.store.sweep(self.id), "test")
        assert lease is not None
        self.lease: Lease = lease
        return Conductor(self.store, lease, open_storage(str(self.storage)), self.clock, **options)


@pytest.fixture
def make_sweep(tmp_path: Path) -> Iterator[Callable[..., _Sweep]]:
    engine = open_database(f"sqlite:///{tmp_path / 'test.db'}")
    yield lambda **changes: _Sweep(Store(engine), tmp_path, _spec(**changes))
    engine.dispose()


def _measure(
    conductor: Conductor, assignment: Assignment, epoch: int, value: float, **metrics: float
) -> bool:
    checkpoint = None
    if epoch == EPOCHS:
        checkpoint = CheckpointReference(name="attempt-1/checkpoint.tar", sha256="0" * 64, size_bytes=1)
    metrics = {"validation_knn_accuracy": value, **metrics}
    measurement = Measurement(epoch=epoch, metrics=metrics, seconds=1.0, checkpoint=checkpoint)
    return conductor.measured(assignment.number, assignment.attempt, measurement)


def _run(conductor: Conductor, assignment: Assignment, value: float) -> int:
    """Report until the trial ends; the epoch at which it did."""
    for epoch in range(assignment.last_epoch + 1, EPOCHS + 1):
        if _measure(conductor, assignment, epoch, value):
            return epoch
    raise AssertionError("the trial did not end")


def _next(conductor: Conductor) -> Assignment:
    assignment = conductor.next()
    assert assignment is not None
    return assignment


def test_baselines_come_first_and_are_neither_searched_nor_pruned(make_sweep: Callable[..., _Sweep]) -> None:
    sweep = make_sweep(early_stopping={"grace_epochs": 1, "reduction_factor": 2})
    conductor = sweep.conduct()
    baseline, searched = _next(conductor), _next(conductor)
    assert baseline.config.equivariance_weight == 0.0
    assert baseline.config.temperature == 0.5, "what a baseline omits comes from the default"
    assert searched.config.equivariance_weight >= 0.01
    assert _run(conductor, searched, 0.9) == EPOCHS
    assert _run(conductor, baseline, 0.1) == EPOCHS, "the worst of all, and it ran to its end"
    records = sweep.store.trials(sweep.id).items
    assert [(r.is_baseline, r.state, r.value) for r in records] == [
        (True, TrialState.COMPLETE, 0.1),
        (False, TrialState.COMPLETE, 0.9),
    ]


def test_a_trial_below_the_rung_is_stored_pruned_without_a_value(make_sweep: Callable[..., _Sweep]) -> None:
    sweep = make_sweep()
    conductor = sweep.conduct()
    _next(conductor)
    good, bad = _next(conductor), _next(conductor)
    assert _run(conductor, good, 0.9) == EPOCHS
    assert _run(conductor, bad, 0.1) == 1
    record = sweep.store.trial(sweep.id, bad.number)
    assert (record.state, record.value, record.last_epoch) == (TrialState.PRUNED, None, 1)
    assert _measure(conductor, bad, 2, 0.9), "a late report of an ended trial changes nothing"
    assert sweep.store.trial(sweep.id, bad.number) == record


def test_the_sweep_is_finished_when_all_its_trials_have_ended(make_sweep: Callable[..., _Sweep]) -> None:
    conductor = make_sweep(early_stopping="none").conduct()
    for _ in range(6):
        assert not conductor.is_finished
        _run(conductor, _next(conductor), 0.5)
    assert conductor.next() is None
    assert conductor.is_finished


def test_a_failure_of_the_trial_is_final_and_keeps_its_reason(make_sweep: Callable[..., _Sweep]) -> None:
    sweep = make_sweep()
    conductor = sweep.conduct()
    _next(conductor)
    trial = _next(conductor)
    conductor.failed(trial.number, trial.attempt, reason="diverged", message="the loss is nan")
    record = sweep.store.trial(sweep.id, trial.number)
    assert (record.state, record.reason, record.message) == (
        TrialState.FAILED,
        "diverged",
        "the loss is nan",
    )
    conductor.lost(trial.number, trial.attempt, "its process died")
    assert sweep.store.trial(sweep.id, trial.number) == record


def _collapse(conductor: Conductor, assignment: Assignment, epoch: int, value: float | None) -> None:
    metrics = {"embedding_spread": 0.1} | ({} if value is None else {"validation_knn_accuracy": value})
    measurement = Measurement(epoch=epoch, metrics=metrics, seconds=1.0)
    conductor.failed(
        assignment.number,
        assignment.attempt,
        reason="collapsed",
        message="one point",
        measurement=measurement,
    )


def _told(conductor: Conductor) -> list[Any]:
    """What Optuna knows of the searched trials: state, value, and whether a constraint is violated."""
    told = [t for t in conductor._study._study.trials if t.state is not optuna.trial.TrialState.FAIL]
    return [(t.state.name, t.value, bool(t.constraints)) for t in told]


def test_a_collapse_is_infeasible_and_the_search_hears_its_last_value(
    make_sweep: Callable[..., _Sweep],
) -> None:
    sweep = make_sweep()
    conductor = sweep.conduct()
    _next(conductor)
    trial = _next(conductor)
    assert not _measure(conductor, trial, 1, 0.5)
    _collapse(conductor, trial, 2, 0.3)
    record = sweep.store.trial(sweep.id, trial.number)
    assert (record.state, record.reason, record.message) == (TrialState.INFEASIBLE, "collapsed", "one point")
    assert (record.value, record.last_epoch) == (None, 2), "it does not rank; what was seen is stored"
    assert record.metrics["embedding_spread"] == 0.1
    assert _told(conductor) == _told(sweep.conduct()) == [("COMPLETE", 0.3, True)]
    conductor = sweep.conduct()
    _collapse(conductor, trial, 3, 0.9)
    assert _measure(conductor, trial, 3, 0.9), "a late report of an ended trial changes nothing"
    assert sweep.store.trial(sweep.id, trial.number) == record


def test_a_collapse_without_a_value_falls_back_on_the_last_one(make_sweep: Callable[..., _Sweep]) -> None:
    sweep = make_sweep()
    conductor = sweep.conduct()
    _next(conductor)
    measured, never = _next(conductor), _next(conductor)
    assert not _measure(conductor, measured, 1, 0.5)
    _collapse(conductor, measured, 2, None)
    _collapse(conductor, never, 1, None)
    assert _told(conductor) == _told(sweep.conduct()) == [("COMPLETE", 0.5, True)]
    assert sweep.store.trial(sweep.id, never.number).state is TrialState.INFEASIBLE


def test_a_collapsed_baseline_ends_and_the_search_never_hears_of_it(
    make_sweep: Callable[..., _Sweep],
) -> None:
    sweep = make_sweep()
    conductor = sweep.conduct()
    baseline = _next(conductor)
    _collapse(conductor, baseline, 1, 0.2)
    assert sweep.store.trial(sweep.id, baseline.number).state is TrialState.INFEASIBLE
    assert _told(conductor) == _told(sweep.conduct()) == []


def test_a_collapse_half_stored_is_stored_whole_by_the_next_attempt(
    make_sweep: Callable[..., _Sweep],
) -> None:
    """The driver died between the measurement and the end of the trial."""
    sweep = make_sweep()
    conductor = sweep.conduct()
    _next(conductor)
    trial = _next(conductor)
    seen = Measurement(epoch=1, metrics={"validation_knn_accuracy": 0.3}, seconds=1.0)
    sweep.lease.record(trial.number, trial.attempt, seen)
    conductor = sweep.conduct()
    _next(conductor)
    again = _next(conductor)
    assert (again.number, again.attempt, again.last_epoch) == (trial.number, 2, 1)
    _collapse(conductor, again, 1, 0.3)
    assert sweep.store.trial(sweep.id, trial.number).state is TrialState.INFEASIBLE
    assert _told(conductor) == [("COMPLETE", 0.3, True)]


def test_a_lost_worker_is_replaced_until_its_attempts_are_used_up(make_sweep: Callable[..., _Sweep]) -> None:
    sweep = make_sweep()
    conductor = sweep.conduct()
    first = _next(conductor)
    _measure(conductor, first, 1, 0.5)
    trial = first
    for attempt in range(1, MAX_LOSSES):
        conductor.lost(trial.number, trial.attempt, "its process died")
        assert _measure(conductor, trial, 2, 0.5), "a report that comes after the loss is not stored"
        sweep.clock.now += 2.0**attempt - 0.1
        assert _next(conductor).number == attempt, "others go first while a lost trial waits"
        sweep.clock.now += 0.1
        trial = _next(conductor)
        assert (trial.number, trial.attempt) == (first.number, attempt + 1)
        assert (trial.config, trial.last_epoch) == (first.config, 1)
    assert not _measure(conductor, trial, 1, 0.5), "an epoch that is stored is not stored again"
    assert _measure(conductor, first, 2, 0.5), "the first attempt came back from the dead: it must stop"
    conductor.lost(trial.number, trial.attempt, "its process died")
    assert sweep.store.trial(sweep.id, first.number).state is TrialState.FAILED
    reasons = [attempt.reason for attempt in sweep.store.attempts(sweep.id, first.number)]
    assert reasons == ["worker lost"] * MAX_LOSSES


def test_a_new_conductor_goes_on_where_the_old_one_died(make_sweep: Callable[..., _Sweep]) -> None:
    sweep = make_sweep()
    conductor = sweep.conduct()
    baseline, good, open_one = (_next(conductor) for _ in range(3))
    _run(conductor, good, 0.9)
    _measure(conductor, open_one, 1, 0.95)
    abandoned = sweep.lease

    conductor = sweep.conduct()
    again = [_next(conductor), _next(conductor)]
    assert [(a.number, a.attempt, a.last_epoch) for a in again] == [
        (baseline.number, 2, 0),
        (open_one.number, 2, 1),
    ]
    assert [a.config for a in again] == [baseline.config, open_one.config]
    fresh = _next(conductor)
    assert fresh.number == 3, "no number twice, no baseline twice"
    assert _run(conductor, fresh, 0.1) == 1, "rungs are refilled: the bar stands"
    with pytest.raises(LeaseLost):
        abandoned.start_attempt(9, 1, {}, is_baseline=False)


def test_replay_suggests_what_the_uninterrupted_sweep_would_have(make_sweep: Callable[..., _Sweep]) -> None:
    def suggestions(restarts: bool) -> list[Mapping[str, Any]]:
        sweep = make_sweep(num_trials=12)
        conductor = sweep.conduct()
        seen = []
        for _ in range(12):
            assignment = _next(conductor)
            seen.append(sweep.store.trial(sweep.id, assignment.number).parameters)
            _run(conductor, assignment, 1 / (1 + assignment.config.temperature))
            if restarts:
                conductor = sweep.conduct()
        return seen

    assert suggestions(restarts=False) == suggestions(restarts=True)


def test_a_spent_budget_cancels_what_runs_and_starts_nothing(make_sweep: Callable[..., _Sweep]) -> None:
    sweep = make_sweep(budget={"max_seconds": 60})
    sweep.store.clock = lambda: 0.0
    conductor = sweep.conduct()
    first, second = _next(conductor), _next(conductor)
    conductor.lost(second.number, second.attempt, "its process died")
    sweep.clock.now += 61
    assert _measure(conductor, first, 1, 0.5)
    assert conductor.next() is None
    assert conductor.is_finished
    assert [t.state for t in sweep.store.trials(sweep.id).items] == [TrialState.CANCELLED] * 2


def test_training_states_go_when_their_trial_ends(make_sweep: Callable[..., _Sweep]) -> None:
    sweep = make_sweep(early_stopping="none")
    conductor = sweep.conduct()
    trial = _next(conductor)
    attempt = sweep.storage / trial.prefix / "attempt-1"
    attempt.mkdir(parents=True)
    for name in ("state-00003.pt", "state-00004.pt", "checkpoint.tar", "log.txt"):
        (attempt / name).touch()
    _run(conductor, trial, 0.5)
    assert sorted(path.name for path in attempt.iterdir()) == ["checkpoint.tar", "log.txt"]


def _leave_checkpoint(sweep: _Sweep, assignment: Assignment) -> Path:
    path = sweep.storage / assignment.prefix / "attempt-1" / "checkpoint.tar"
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def test_only_the_best_checkpoints_and_the_baselines_are_kept(make_sweep: Callable[..., _Sweep]) -> None:
    sweep = make_sweep(early_stopping="none")
    conductor = sweep.conduct(num_checkpoints_kept=2)
    paths = []
    for value in (0.1, 0.5, 0.3, 0.4, 0.4, 0.9):  # the first is the baseline's
        trial = _next(conductor)
        paths.append(_leave_checkpoint(sweep, trial))
        _run(conductor, trial, value)
        rows = sweep.store.trials(sweep.id).items
        assert [path.exists() for path in paths] == [row.checkpoint is not None for row in rows]
    assert [path.exists() for path in paths] == [True, True, False, False, False, True]
    assert all(row.state is TrialState.COMPLETE for row in sweep.store.trials(sweep.id).items)


def test_no_row_ever_names_a_checkpoint_that_is_gone(
    make_sweep: Callable[..., _Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the deletion, the row's change or the process before both breaks off."""
    sweep = make_sweep(early_stopping="none")
    conductor = sweep.conduct()
    paths = []
    for value in (0.1, 0.5, 0.3):
        trial = _next(conductor)
        paths.append(_leave_checkpoint(sweep, trial))
        _run(conductor, trial, value)

    def named() -> list[bool]:
        return [row.checkpoint is not None for row in sweep.store.trials(sweep.id).items]

    with monkeypatch.context() as patch:
        patch.setattr(Lease, "forget_checkpoints", _raise(OSError("the database is away")))
        with pytest.raises(OSError, match="the database is away"):
            sweep.conduct(num_checkpoints_kept=1)
    assert named() == [path.exists() for path in paths] == [True, True, True]
    with monkeypatch.context() as patch:
        patch.setattr("care_sweep.storage.folder.Folder.delete", _raise(StorageError("the storage is away")))
        sweep.conduct(num_checkpoints_kept=1)
    assert named() == [True, True, False]
    assert paths[2].exists(), "until a runner tidies up"


def _raise(error: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


def test_a_storage_that_is_away_does_not_keep_a_trial_from_ending(
    make_sweep: Callable[..., _Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = make_sweep(early_stopping="none")
    conductor = sweep.conduct()
    monkeypatch.setattr("care_sweep.storage.folder.Folder.list", _raise(StorageError("the storage is away")))
    trial = _next(conductor)
    assert _run(conductor, trial, 0.5) == EPOCHS
    assert sweep.store.trial(sweep.id, trial.number).state is TrialState.COMPLETE


def test_a_cancelled_sweep_takes_no_more_writes(make_sweep: Callable[..., _Sweep]) -> None:
    sweep = make_sweep()
    conductor = sweep.conduct()
    trial = _next(conductor)
    sweep.store.control.cancel(sweep.id)
    sweep.lease.finish_sweep(SweepState.CANCELLED, reason="cancelled")
    with pytest.raises(LeaseLost):
        _measure(conductor, trial, 1, 0.5)
    assert sweep.store.trial(sweep.id, trial.number).state is TrialState.CANCELLED


def test_restarts_do_not_count_as_losses(make_sweep: Callable[..., _Sweep]) -> None:
    sweep = make_sweep()
    _next(sweep.conduct())
    for _ in range(MAX_LOSSES):
        conductor = sweep.conduct()
        trial = _next(conductor)
    conductor.lost(trial.number, trial.attempt, "its process died")
    assert sweep.store.trial(sweep.id, trial.number).state is TrialState.WAITING


def test_losses_before_a_restart_still_count(make_sweep: Callable[..., _Sweep]) -> None:
    sweep = make_sweep()
    for _ in range(MAX_LOSSES):
        conductor = sweep.conduct()
        trial = _next(conductor)
        conductor.lost(trial.number, trial.attempt, "its process died")
    assert sweep.store.trial(sweep.id, trial.number).state is TrialState.FAILED


def test_a_full_disk_pauses_the_sweep_and_costs_no_trial(make_sweep: Callable[..., _Sweep]) -> None:
    sweep = make_sweep()
    conductor = sweep.conduct()
    trial = _next(conductor)
    for pause in (5, 10, 20, 40, 60, 60):
        conductor.interrupted(trial.number, trial.attempt, "/storage: No space left on device")
        assert sweep.store.sweep(sweep.id).message == "/storage: No space left on device"
        sweep.clock.now += pause - 1
        assert conductor.next() is None
        assert not conductor.is_finished
        sweep.clock.now += 1
        trial = _next(conductor)
    _measure(conductor, trial, 1, 0.5)
    assert sweep.store.sweep(sweep.id).message is None
    assert _run(conductor, replace(trial, last_epoch=1), 0.5) == EPOCHS
    assert sweep.store.trial(sweep.id, trial.number).state is TrialState.COMPLETE


def test_a_failed_point_teaches_the_search_nothing(make_sweep: Callable[..., _Sweep]) -> None:
    sweep = make_sweep(early_stopping="none", num_trials=40)
    conductor = sweep.conduct()
    _run(conductor, _next(conductor), 0.5)
    for _ in range(20):
        trial = _next(conductor)
        _measure(conductor, trial, 1, 0.9)
        conductor.failed(trial.number, trial.attempt, reason="diverged", message="the loss is nan")
    after_failures = _next(conductor).config.temperature

    study = Study(conductor.spec.space, conductor.spec.seed)
    assert after_failures == study.ask(21)["temperature"], "as if nothing had been tried yet"


def test_a_budget_runs_on_through_a_restart(make_sweep: Callable[..., _Sweep]) -> None:
    sweep = make_sweep(budget={"max_seconds": 60})
    _next(sweep.conduct())
    sweep.lease.renew(61.0)
    conductor = sweep.conduct()
    assert conductor.next() is None
    assert (conductor.is_finished, conductor.has_cut_short) == (True, True)


def test_a_budget_that_suffices_cuts_nothing_short(make_sweep: Callable[..., _Sweep]) -> None:
    sweep = make_sweep(budget={"max_seconds": 60}, num_trials=1)
    conductor = sweep.conduct()
    _run(conductor, _next(conductor), 0.5)
    sweep.clock.now += 61
    assert conductor.next() is None
    assert not conductor.has_cut_short


def test_a_budget_spent_while_the_last_open_trial_completes_cuts_the_rest_short(
    make_sweep: Callable[..., _Sweep],
) -> None:
    sweep = make_sweep(budget={"max_seconds": 60}, early_stopping="none")
    sweep.store.clock = lambda: 0.0
    conductor = sweep.conduct()
    trial = _next(conductor)
    for epoch in range(1, EPOCHS):
        _measure(conductor, trial, epoch, 0.5)
    sweep.clock.now += 61
    assert _measure(conductor, trial, EPOCHS, 0.5)
    assert sweep.store.trial(sweep.id, trial.number).state is TrialState.COMPLETE
    assert (conductor.is_finished, conductor.has_cut_short) == (True, True)


# --- what users want of it ---


def _wait(sweep: _Sweep) -> None:
    """Until the conductor looks again."""
    sweep.clock.now += 0.5


def test_a_pause_ends_attempts_at_their_epoch_and_a_new_conductor_goes_on(
    make_sweep: Callable[..., _Sweep],
) -> None:
    sweep = make_sweep(early_stopping="none")
    conductor = sweep.conduct()
    first, second = _next(conductor), _next(conductor)
    sweep.store.control.pause(sweep.id)
    _wait(sweep)
    assert conductor.next() is None
    assert not conductor.is_finished, "two trials run"
    assert _measure(conductor, first, 1, 0.5), "its epoch is stored, and it stops"
    assert _measure(conductor, second, 1, 0.6)
    assert conductor.is_finished
    sweep.lease.release()
    waiting = sweep.store.trials(sweep.id).items
    assert [(t.state, t.reason, t.last_epoch) for t in waiting] == [(TrialState.WAITING, "paused", 1)] * 2

    sweep.store.control.resume(sweep.id)
    conductor = sweep.conduct()
    again = [_next(conductor), _next(conductor)]
    assert [(a.number, a.attempt, a.last_epoch) for a in again] == [(0, 2, 1), (1, 2, 1)]
    assert _next(conductor).number == 2


def test_a_last_epoch_is_complete_in_a_pause_too(make_sweep: Callable[..., _Sweep]) -> None:
    sweep = make_sweep(early_stopping="none")
    conductor = sweep.conduct()
    trial = _next(conductor)
    for epoch in range(1, EPOCHS):
        _measure(conductor, trial, epoch, 0.5)
    sweep.store.control.pause(sweep.id)
    _wait(sweep)
    assert _measure(conductor, trial, EPOCHS, 0.5)
    assert sweep.store.trial(sweep.id, 0).state is TrialState.COMPLETE


def test_a_drained_sweep_starts_nothing_new_and_lets_end_what_began(
    make_sweep: Callable[..., _Sweep],
) -> None:
    sweep = make_sweep(early_stopping="none")
    conductor = sweep.conduct()
    first, second = _next(conductor), _next(conductor)
    conductor.lost(second.number, second.attempt, "its process died")
    sweep.store.control.stop(sweep.id)
    sweep.clock.now += 10
    again = _next(conductor)
    assert again.number == second.number, "it had begun"
    assert conductor.next() is None
    assert _run(conductor, first, 0.5) == EPOCHS
    assert not conductor.is_finished
    assert _run(conductor, again, 0.6) == EPOCHS
    assert (conductor.is_finished, conductor.has_cut_short) == (True, False)


def test_one_trial_can_be_stopped(make_sweep: Callable[..., _Sweep]) -> None:
    sweep = make_sweep(early_stopping="none")
    conductor = sweep.conduct()
    _, running, waiting = (_next(conductor) for _ in range(3))
    conductor.lost(waiting.number, waiting.attempt, "its process died")
    for trial in (running, waiting):
        sweep.store.control.stop_trial(sweep.id, trial.number)
    _wait(sweep)
    assert _measure(conductor, running, 1, 0.5)
    ended = [sweep.store.trial(sweep.id, trial.number) for trial in (running, waiting)]
    assert [(t.state, t.reason) for t in ended] == [(TrialState.CANCELLED, "stopped")] * 2
    assert _told(conductor) == [], "nothing is learnt of points whose trials a user stopped"
    sweep.clock.now += 10
    assert _next(conductor).number == 3


def test_enqueued_points_come_after_baselines_and_are_learnt_from(make_sweep: Callable[..., _Sweep]) -> None:
    sweep = make_sweep(early_stopping="none", num_trials=3)
    point = {"equivariance_weight": 0.25, "temperature": 0.75}
    sweep.store.control.enqueue(sweep.id, point)
    conductor = sweep.conduct()
    assert _next(conductor).config.equivariance_weight == 0.0
    enqueued = _next(conductor)
    assert sweep.store.trial(sweep.id, enqueued.number).parameters == point
    _run(conductor, enqueued, 0.7)
    assert _told(conductor) == [("COMPLETE", 0.7, False)]
    conductor = sweep.conduct()
    assert [_next(conductor).number, _next(conductor).number] == [0, 2], "it is taken once"
    assert sweep.store.trial(sweep.id, 2).parameters != point


def test_more_trials_are_begun_as_soon_as_they_are_wanted(make_sweep: Callable[..., _Sweep]) -> None:
    sweep = make_sweep(num_trials=1)
    conductor = sweep.conduct()
    _run(conductor, _next(conductor), 0.5)
    assert conductor.is_finished
    more = {"num_trials": 2, "max_concurrent_trials": 3}
    sweep.store.control.extend(sweep.id, lambda spec: spec.model_copy(update=more))
    _wait(sweep)
    assert _next(conductor).number == 1
    assert conductor.spec.max_concurrent_trials == 3


def test_gpu_hours_are_those_of_stored_epochs_by_whichever_driver(make_sweep: Callable[..., _Sweep]) -> None:
    sweep = make_sweep(early_stopping="none", budget={"max_gpu_hours": 3.5 / 3600})
    for epoch in (1, 2, 3):
        conductor = sweep.conduct()
        conductor.gpus_per_trial = 0.5
        trial = _next(conductor)
        conductor.measured(trial.number, trial.attempt, _seconds(epoch, 2.0))
        assert conductor.measured(trial.number, trial.attempt, _seconds(epoch, 9.0)) is False, "counted once"
        assert not conductor.is_out_of_budget
    assert sweep.store.sweep(sweep.id).gpu_seconds == 3.0
    conductor.measured(trial.number, trial.attempt, _seconds(4, 2.0))
    assert conductor.is_out_of_budget


def _seconds(epoch: int, seconds: float) -> Measurement:
    return Measurement(epoch=epoch, metrics={"validation_knn_accuracy": 0.5}, seconds=seconds)


def test_seconds_without_a_driver_are_not_spent(make_sweep: Callable[..., _Sweep]) -> None:
    sweep = make_sweep(budget={"max_seconds": 60})
    sweep.conduct()
    sweep.lease.renew(40.0)
    sweep.clock.now += 3600
    conductor = sweep.conduct()
    assert not conductor.is_out_of_budget
    sweep.clock.now += 20
    assert conductor.is_out_of_budget
