"""A trial's whole life, without Ray: the conductor between a real store and a real study."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conducting import EPOCHS, Sweep, measure, next_of, run, told

from care_sweep.errors import LeaseLost, StorageError
from care_sweep.run.conductor import Conductor
from care_sweep.run.open_trials import MAX_LOSSES, Assignment
from care_sweep.search.study import Study
from care_sweep.spec import Measurement, Place, SweepState, TrialState
from care_sweep.store import Lease


def test_baselines_come_first_and_are_neither_searched_nor_pruned(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep(early_stopping={"grace_epochs": 1, "reduction_factor": 2})
    conductor = sweep.conduct()
    baseline, searched = next_of(conductor), next_of(conductor)
    assert baseline.config.equivariance_weight == 0.0
    assert baseline.config.temperature == 0.5, "what a baseline omits comes from the default"
    assert searched.config.equivariance_weight >= 0.01
    assert run(conductor, searched, 0.9) == EPOCHS
    assert run(conductor, baseline, 0.1) == EPOCHS, "the worst of all, and it ran to its end"
    records = sweep.store.trials(sweep.id).items
    assert [(r.is_baseline, r.state, r.value) for r in records] == [
        (True, TrialState.COMPLETE, 0.1),
        (False, TrialState.COMPLETE, 0.9),
    ]


def test_a_trial_below_the_rung_is_stored_pruned_without_a_value(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep()
    conductor = sweep.conduct()
    next_of(conductor)
    good, bad = next_of(conductor), next_of(conductor)
    assert run(conductor, good, 0.9) == EPOCHS
    assert run(conductor, bad, 0.1) == 1
    record = sweep.store.trial(sweep.id, bad.number)
    assert (record.state, record.value, record.last_epoch) == (TrialState.PRUNED, None, 1)
    assert measure(conductor, bad, 2, 0.9), "a late report of an ended trial changes nothing"
    assert sweep.store.trial(sweep.id, bad.number) == record


def test_the_sweep_is_finished_when_all_its_trials_have_ended(make_sweep: Callable[..., Sweep]) -> None:
    conductor = make_sweep(early_stopping="none").conduct()
    for _ in range(6):
        assert not conductor.is_finished
        run(conductor, next_of(conductor), 0.5)
    assert conductor.next() is None
    assert conductor.is_finished


def test_a_failure_of_the_trial_is_final_and_keeps_its_reason(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep()
    conductor = sweep.conduct()
    next_of(conductor)
    trial = next_of(conductor)
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


def test_a_collapse_is_infeasible_and_the_search_hears_its_last_value(
    make_sweep: Callable[..., Sweep],
) -> None:
    sweep = make_sweep()
    conductor = sweep.conduct()
    next_of(conductor)
    trial = next_of(conductor)
    assert not measure(conductor, trial, 1, 0.5)
    _collapse(conductor, trial, 2, 0.3)
    record = sweep.store.trial(sweep.id, trial.number)
    assert (record.state, record.reason, record.message) == (TrialState.INFEASIBLE, "collapsed", "one point")
    assert (record.value, record.last_epoch) == (None, 2), "it does not rank; what was seen is stored"
    assert record.metrics["embedding_spread"] == 0.1
    assert told(conductor) == told(sweep.conduct()) == [("COMPLETE", 0.3, True)]
    conductor = sweep.conduct()
    _collapse(conductor, trial, 3, 0.9)
    assert measure(conductor, trial, 3, 0.9), "a late report of an ended trial changes nothing"
    assert sweep.store.trial(sweep.id, trial.number) == record


def test_a_collapse_without_a_value_is_told_all_the_same(make_sweep: Callable[..., Sweep]) -> None:
    """With the last value that there was; a search by the probe has none before the last epoch."""
    sweep = make_sweep()
    conductor = sweep.conduct()
    next_of(conductor)
    measured, never = next_of(conductor), next_of(conductor)
    assert not measure(conductor, measured, 1, 0.5)
    _collapse(conductor, measured, 2, None)
    _collapse(conductor, never, 1, None)
    assert told(conductor) == told(sweep.conduct()) == [("COMPLETE", 0.5, True), ("PRUNED", None, True)]
    assert sweep.store.trial(sweep.id, never.number).state is TrialState.INFEASIBLE


def test_a_collapsed_baseline_ends_and_the_search_never_hears_of_it(
    make_sweep: Callable[..., Sweep],
) -> None:
    sweep = make_sweep()
    conductor = sweep.conduct()
    baseline = next_of(conductor)
    _collapse(conductor, baseline, 1, 0.2)
    assert sweep.store.trial(sweep.id, baseline.number).state is TrialState.INFEASIBLE
    assert told(conductor) == told(sweep.conduct()) == []


def test_a_collapse_half_stored_is_stored_whole_by_the_next_attempt(
    make_sweep: Callable[..., Sweep],
) -> None:
    """The driver died between the measurement and the end of the trial."""
    sweep = make_sweep()
    conductor = sweep.conduct()
    next_of(conductor)
    trial = next_of(conductor)
    seen = Measurement(epoch=1, metrics={"validation_knn_accuracy": 0.3}, seconds=1.0)
    sweep.lease.record(trial.number, trial.attempt, seen)
    conductor = sweep.conduct()
    next_of(conductor)
    again = next_of(conductor)
    assert (again.number, again.attempt, again.last_epoch) == (trial.number, 2, 1)
    _collapse(conductor, again, 1, 0.3)
    assert sweep.store.trial(sweep.id, trial.number).state is TrialState.INFEASIBLE
    assert told(conductor) == [("COMPLETE", 0.3, True)]


def test_a_lost_worker_is_replaced_until_its_attempts_are_used_up(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep()
    conductor = sweep.conduct()
    first = next_of(conductor)
    measure(conductor, first, 1, 0.5)
    trial = first
    for attempt in range(1, MAX_LOSSES):
        conductor.lost(trial.number, trial.attempt, "its process died")
        assert measure(conductor, trial, 2, 0.5), "a report that comes after the loss is not stored"
        sweep.clock.now += 2.0**attempt - 0.1
        assert next_of(conductor).number == attempt, "others go first while a lost trial waits"
        sweep.clock.now += 0.1
        trial = next_of(conductor)
        assert (trial.number, trial.attempt) == (first.number, attempt + 1)
        assert (trial.config, trial.last_epoch) == (first.config, 1)
    assert not measure(conductor, trial, 1, 0.5), "an epoch that is stored is not stored again"
    assert measure(conductor, first, 2, 0.5), "the first attempt came back from the dead: it must stop"
    conductor.lost(trial.number, trial.attempt, "its process died")
    assert sweep.store.trial(sweep.id, first.number).state is TrialState.FAILED
    reasons = [attempt.reason for attempt in sweep.store.attempts(sweep.id, first.number)]
    assert reasons == ["worker lost"] * MAX_LOSSES


def test_a_trial_whose_node_is_drained_goes_on_at_once_however_often_it_happens(
    make_sweep: Callable[..., Sweep],
) -> None:
    sweep = make_sweep()
    conductor = sweep.conduct()
    first = trial = next_of(conductor)
    measure(conductor, first, 1, 0.5)
    for attempt in range(2, MAX_LOSSES + 3):
        conductor.displaced(trial.number, trial.attempt, "its node was drained")
        conductor.lost(trial.number, trial.attempt, "its process died")  # as Tune says next
        trial = next_of(conductor)
        assert (trial.number, trial.attempt, trial.last_epoch) == (first.number, attempt, 1)
    conductor = sweep.conduct()
    trial = next_of(conductor)
    conductor.lost(trial.number, trial.attempt, "its process died")
    assert sweep.store.trial(sweep.id, first.number).state is TrialState.WAITING, "its first loss"
    reasons = {attempt.reason for attempt in sweep.store.attempts(sweep.id, first.number)}
    assert {"node drained", "worker lost"} <= reasons


def test_a_new_conductor_goes_on_where_the_old_one_died(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep()
    conductor = sweep.conduct()
    baseline, good, open_one = (next_of(conductor) for _ in range(3))
    run(conductor, good, 0.9)
    measure(conductor, open_one, 1, 0.95)
    abandoned = sweep.lease

    conductor = sweep.conduct()
    again = [next_of(conductor), next_of(conductor)]
    assert [(a.number, a.attempt, a.last_epoch) for a in again] == [
        (baseline.number, 2, 0),
        (open_one.number, 2, 1),
    ]
    assert [a.config for a in again] == [baseline.config, open_one.config]
    fresh = next_of(conductor)
    assert fresh.number == 3, "no number twice, no baseline twice"
    assert run(conductor, fresh, 0.1) == 1, "rungs are refilled: the bar stands"
    with pytest.raises(LeaseLost):
        abandoned.start_attempt(9, 1, {}, is_baseline=False)


def test_replay_suggests_what_the_uninterrupted_sweep_would_have(make_sweep: Callable[..., Sweep]) -> None:
    def suggestions(restarts: bool) -> list[Mapping[str, Any]]:
        sweep = make_sweep(num_trials=12)
        conductor = sweep.conduct()
        seen = []
        for _ in range(12):
            assignment = next_of(conductor)
            seen.append(sweep.store.trial(sweep.id, assignment.number).parameters)
            run(conductor, assignment, 1 / (1 + assignment.config.temperature))
            if restarts:
                conductor = sweep.conduct()
        return seen

    assert suggestions(restarts=False) == suggestions(restarts=True)


def test_a_spent_budget_cancels_what_runs_and_starts_nothing(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep(budget={"max_seconds": 60})
    sweep.store.clock = lambda: 0.0
    conductor = sweep.conduct()
    first, second = next_of(conductor), next_of(conductor)
    conductor.lost(second.number, second.attempt, "its process died")
    sweep.clock.now += 61
    assert measure(conductor, first, 1, 0.5)
    assert conductor.next() is None
    assert conductor.is_finished
    assert [t.state for t in sweep.store.trials(sweep.id).items] == [TrialState.CANCELLED] * 2


def test_training_states_go_when_their_trial_ends(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep(early_stopping="none")
    conductor = sweep.conduct()
    trial = next_of(conductor)
    attempt = sweep.storage / trial.prefix / "attempt-1"
    attempt.mkdir(parents=True)
    for name in ("state-00003.pt", "state-00004.pt", "checkpoint.tar", "log.txt"):
        (attempt / name).touch()
    run(conductor, trial, 0.5)
    assert sorted(path.name for path in attempt.iterdir()) == ["checkpoint.tar", "log.txt"]


def _leave_checkpoint(sweep: Sweep, assignment: Assignment) -> Path:
    path = sweep.storage / assignment.prefix / "attempt-1" / "checkpoint.tar"
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def test_only_the_best_checkpoints_and_the_baselines_are_kept(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep(early_stopping="none")
    conductor = sweep.conduct(num_checkpoints_kept=2)
    paths = []
    for value in (0.1, 0.5, 0.3, 0.4, 0.4, 0.9):  # the first is the baseline's
        trial = next_of(conductor)
        paths.append(_leave_checkpoint(sweep, trial))
        run(conductor, trial, value)
        rows = sweep.store.trials(sweep.id).items
        assert [path.exists() for path in paths] == [row.checkpoint is not None for row in rows]
    assert [path.exists() for path in paths] == [True, True, False, False, False, True]
    assert all(row.state is TrialState.COMPLETE for row in sweep.store.trials(sweep.id).items)


def test_no_row_ever_names_a_checkpoint_that_is_gone(
    make_sweep: Callable[..., Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the deletion, the row's change or the process before both breaks off."""
    sweep = make_sweep(early_stopping="none")
    conductor = sweep.conduct()
    paths = []
    for value in (0.1, 0.5, 0.3):
        trial = next_of(conductor)
        paths.append(_leave_checkpoint(sweep, trial))
        run(conductor, trial, value)

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
    make_sweep: Callable[..., Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = make_sweep(early_stopping="none")
    conductor = sweep.conduct()
    monkeypatch.setattr("care_sweep.storage.folder.Folder.list", _raise(StorageError("the storage is away")))
    trial = next_of(conductor)
    assert run(conductor, trial, 0.5) == EPOCHS
    assert sweep.store.trial(sweep.id, trial.number).state is TrialState.COMPLETE


def test_a_cancelled_sweep_takes_no_more_writes(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep()
    conductor = sweep.conduct()
    trial = next_of(conductor)
    sweep.store.control.cancel(sweep.id)
    sweep.lease.finish_sweep(SweepState.CANCELLED, reason="cancelled")
    with pytest.raises(LeaseLost):
        measure(conductor, trial, 1, 0.5)
    assert sweep.store.trial(sweep.id, trial.number).state is TrialState.CANCELLED


def test_restarts_do_not_count_as_losses(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep()
    next_of(sweep.conduct())
    for _ in range(MAX_LOSSES):
        conductor = sweep.conduct()
        trial = next_of(conductor)
    conductor.lost(trial.number, trial.attempt, "its process died")
    assert sweep.store.trial(sweep.id, trial.number).state is TrialState.WAITING


def test_losses_before_a_restart_still_count(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep()
    for _ in range(MAX_LOSSES):
        conductor = sweep.conduct()
        trial = next_of(conductor)
        conductor.lost(trial.number, trial.attempt, "its process died")
    assert sweep.store.trial(sweep.id, trial.number).state is TrialState.FAILED


def test_a_full_disk_pauses_the_sweep_and_costs_no_trial(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep()
    conductor = sweep.conduct()
    trial = next_of(conductor)
    for pause in (5, 10, 20, 40, 60, 60):
        conductor.interrupted(trial.number, trial.attempt, "/storage: No space left on device")
        assert sweep.store.sweep(sweep.id).message == "/storage: No space left on device"
        sweep.clock.now += pause - 1
        assert conductor.next() is None
        assert not conductor.is_finished
        sweep.clock.now += 1
        trial = next_of(conductor)
    measure(conductor, trial, 1, 0.5)
    assert sweep.store.sweep(sweep.id).message is None
    assert run(conductor, replace(trial, last_epoch=1), 0.5) == EPOCHS
    assert sweep.store.trial(sweep.id, trial.number).state is TrialState.COMPLETE


def test_trials_that_meet_the_same_trouble_at_once_pause_the_sweep_once(
    make_sweep: Callable[..., Sweep],
) -> None:
    sweep = make_sweep(max_concurrent_trials=4)
    conductor = sweep.conduct()
    for trial in [next_of(conductor) for _ in range(4)]:
        conductor.interrupted(trial.number, trial.attempt, "/storage: No space left on device")
    sweep.clock.now += 5
    next_of(conductor)


def test_a_failed_point_teaches_the_search_nothing(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep(early_stopping="none", num_trials=40)
    conductor = sweep.conduct()
    run(conductor, next_of(conductor), 0.5)
    for _ in range(20):
        trial = next_of(conductor)
        measure(conductor, trial, 1, 0.9)
        conductor.failed(trial.number, trial.attempt, reason="diverged", message="the loss is nan")
    after_failures = next_of(conductor).config.temperature

    study = Study(conductor.spec.space, conductor.spec.seed)
    assert after_failures == study.ask(21)["temperature"], "as if nothing had been tried yet"


def test_a_budget_runs_on_through_a_restart(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep(budget={"max_seconds": 60})
    next_of(sweep.conduct())
    sweep.lease.renew(61.0)
    conductor = sweep.conduct()
    assert conductor.next() is None
    assert (conductor.is_finished, conductor.cut_short) == (True, "budget spent")


def test_a_budget_that_suffices_cuts_nothing_short(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep(budget={"max_seconds": 60}, num_trials=1)
    conductor = sweep.conduct()
    run(conductor, next_of(conductor), 0.5)
    sweep.clock.now += 61
    assert conductor.next() is None
    assert conductor.cut_short is None


def test_a_budget_spent_while_the_last_open_trial_completes_cuts_the_rest_short(
    make_sweep: Callable[..., Sweep],
) -> None:
    sweep = make_sweep(budget={"max_seconds": 60}, early_stopping="none")
    sweep.store.clock = lambda: 0.0
    conductor = sweep.conduct()
    trial = next_of(conductor)
    for epoch in range(1, EPOCHS):
        measure(conductor, trial, epoch, 0.5)
    sweep.clock.now += 61
    assert measure(conductor, trial, EPOCHS, 0.5)
    assert sweep.store.trial(sweep.id, trial.number).state is TrialState.COMPLETE
    assert (conductor.is_finished, conductor.cut_short) == (True, "budget spent")


# --- what operators see ---


def test_the_seconds_of_the_search_are_stored(
    make_sweep: Callable[..., Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = make_sweep()
    conductor = sweep.conduct()
    for name, seconds in (("ask", 0.5), ("report", 0.25)):
        inner = getattr(conductor._search._study, name)

        def slow(*told: Any, inner: Any = inner, seconds: float = seconds) -> Any:
            sweep.clock.now += seconds
            return inner(*told)

        monkeypatch.setattr(conductor._search._study, name, slow)

    def stored() -> float:
        return sweep.store.sweep(sweep.id).search_seconds

    next_of(conductor)
    assert stored() == 0.0, "nobody searches for a baseline"
    searched = next_of(conductor)
    assert stored() == 0.5
    measure(conductor, searched, 1, 0.5)
    measure(conductor, searched, 2, 0.5)
    assert stored() == 0.75, "what an epoch taught comes with the next one"


def test_where_an_attempt_runs_is_stored_while_it_does(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep()
    conductor = sweep.conduct()
    trial = next_of(conductor)
    place = Place(actor_id="a1", node_id="b2", log_name=None)
    conductor.placed(trial.number, trial.attempt, place)
    conductor.placed(trial.number, trial.attempt + 1, Place(actor_id="f0", node_id="b2", log_name=None))
    (attempt,) = sweep.store.attempts(sweep.id, trial.number)
    assert attempt.place == place
