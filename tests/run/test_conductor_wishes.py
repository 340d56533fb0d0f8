"""What users want of a sweep that is conducted: pause, drain, stop a trial, enqueue, extend, budgets."""

from collections.abc import Callable

import pytest
from conducting import EPOCHS, Sweep, measure, next_of, run, told

from care_sweep.run.conductor import Conductor
from care_sweep.run.open_trials import Assignment
from care_sweep.spec import Measurement, TrialState


def _wait(sweep: Sweep) -> None:
    """Until the conductor looks again."""
    sweep.clock.now += 0.5


def test_a_pause_ends_attempts_at_their_epoch_and_a_new_conductor_goes_on(
    make_sweep: Callable[..., Sweep],
) -> None:
    sweep = make_sweep(early_stopping="none")
    conductor = sweep.conduct()
    first, second = next_of(conductor), next_of(conductor)
    sweep.store.control.pause(sweep.id)
    _wait(sweep)
    assert conductor.next() is None
    assert not conductor.is_finished, "two trials run"
    assert measure(conductor, first, 1, 0.5), "its epoch is stored, and it stops"
    assert measure(conductor, second, 1, 0.6)
    assert conductor.is_finished
    sweep.lease.release()
    waiting = sweep.store.trials(sweep.id).items
    assert [(t.state, t.reason, t.last_epoch) for t in waiting] == [(TrialState.WAITING, "paused", 1)] * 2

    sweep.store.control.resume(sweep.id)
    conductor = sweep.conduct()
    again = [next_of(conductor), next_of(conductor)]
    assert [(a.number, a.attempt, a.last_epoch) for a in again] == [(0, 2, 1), (1, 2, 1)]
    assert next_of(conductor).number == 2


def test_a_last_epoch_is_complete_in_a_pause_too(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep(early_stopping="none")
    conductor = sweep.conduct()
    trial = next_of(conductor)
    for epoch in range(1, EPOCHS):
        measure(conductor, trial, epoch, 0.5)
    sweep.store.control.pause(sweep.id)
    _wait(sweep)
    assert measure(conductor, trial, EPOCHS, 0.5)
    assert sweep.store.trial(sweep.id, 0).state is TrialState.COMPLETE


def test_a_drained_sweep_starts_nothing_new_and_lets_end_what_began(
    make_sweep: Callable[..., Sweep],
) -> None:
    sweep = make_sweep(early_stopping="none")
    conductor = sweep.conduct()
    first, second = next_of(conductor), next_of(conductor)
    conductor.lost(second.number, second.attempt, "its process died")
    sweep.store.control.stop(sweep.id)
    sweep.clock.now += 10
    again = next_of(conductor)
    assert again.number == second.number, "it had begun"
    assert conductor.next() is None
    assert run(conductor, first, 0.5) == EPOCHS
    assert not conductor.is_finished
    assert run(conductor, again, 0.6) == EPOCHS
    assert (conductor.is_finished, conductor.cut_short) == (True, None)


def test_one_trial_can_be_stopped(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep(early_stopping="none")
    conductor = sweep.conduct()
    _, running, waiting = (next_of(conductor) for _ in range(3))
    conductor.lost(waiting.number, waiting.attempt, "its process died")
    for trial in (running, waiting):
        sweep.store.control.stop_trial(sweep.id, trial.number)
    _wait(sweep)
    assert measure(conductor, running, 1, 0.5)
    ended = [sweep.store.trial(sweep.id, trial.number) for trial in (running, waiting)]
    assert [(t.state, t.reason) for t in ended] == [(TrialState.CANCELLED, "stopped")] * 2
    assert told(conductor) == [], "nothing is learnt of points whose trials a user stopped"
    sweep.clock.now += 10
    assert next_of(conductor).number == 3


def _retracing(sweep: Sweep) -> tuple[Conductor, Assignment]:
    """A trial measured up to its third epoch, whose next attempt has found no state and begins anew."""
    conductor = sweep.conduct()
    trial = next_of(conductor)
    for epoch in (1, 2, 3):
        measure(conductor, trial, epoch, 0.5)
    conductor.lost(trial.number, trial.attempt, "its process died")
    sweep.clock.now += 10
    return conductor, next_of(conductor)


@pytest.mark.parametrize("wish", ["pause", "stop_trial", "hand over", "budget"])
def test_who_retraces_stored_epochs_hears_wishes_too(make_sweep: Callable[..., Sweep], wish: str) -> None:
    sweep = make_sweep(early_stopping="none", budget={"max_seconds": 60})
    conductor, trial = _retracing(sweep)
    assert not measure(conductor, trial, 1, 0.5)
    if wish == "pause":
        sweep.store.control.pause(sweep.id)
    elif wish == "stop_trial":
        sweep.store.control.stop_trial(sweep.id, trial.number)
    elif wish == "hand over":
        conductor.hand_over()
    else:
        sweep.clock.now += 61
    _wait(sweep)
    assert measure(conductor, trial, 2, 0.5)
    record = sweep.store.trial(sweep.id, trial.number)
    cancels = wish in ("stop_trial", "budget")
    assert record.state is (TrialState.CANCELLED if cancels else TrialState.WAITING)
    assert record.last_epoch == 3, "nothing that was measured is lost"


def test_a_stopped_trial_counts_in_its_rung_as_a_replay_has_it(make_sweep: Callable[..., Sweep]) -> None:
    """A later trial is judged by the same bar, whether there was a restart in between or not."""

    def later_is_stopped(*, restarts: bool) -> bool:
        sweep = make_sweep(num_trials=4)
        conductor = sweep.conduct()
        next_of(conductor)  # the baseline
        good, stopped, late = (next_of(conductor) for _ in range(3))
        measure(conductor, good, 1, 0.5)
        sweep.store.control.stop_trial(sweep.id, stopped.number)
        _wait(sweep)
        assert measure(conductor, stopped, 1, 0.9)
        if restarts:
            conductor = sweep.conduct()
            while late.number != (again := next_of(conductor)).number:
                pass
            late = again
        return measure(conductor, late, 1, 0.4)

    assert later_is_stopped(restarts=False) == later_is_stopped(restarts=True) is True


def test_enqueued_points_come_after_baselines_and_are_learnt_from(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep(early_stopping="none", num_trials=3)
    point = {"equivariance_weight": 0.25, "temperature": 0.75}
    sweep.store.control.enqueue(sweep.id, point)
    conductor = sweep.conduct()
    assert next_of(conductor).config.equivariance_weight == 0.0
    enqueued = next_of(conductor)
    assert sweep.store.trial(sweep.id, enqueued.number).parameters == point
    run(conductor, enqueued, 0.7)
    assert told(conductor) == [("COMPLETE", 0.7, False)]
    conductor = sweep.conduct()
    assert [next_of(conductor).number, next_of(conductor).number] == [0, 2], "it is taken once"
    assert sweep.store.trial(sweep.id, 2).parameters != point


def test_more_trials_are_begun_as_soon_as_they_are_wanted(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep(num_trials=1)
    conductor = sweep.conduct()
    run(conductor, next_of(conductor), 0.5)
    assert conductor.is_finished
    more = {"num_trials": 2, "max_concurrent_trials": 3}
    sweep.store.control.extend(sweep.id, lambda spec: spec.model_copy(update=more))
    _wait(sweep)
    assert next_of(conductor).number == 1
    assert conductor.spec.max_concurrent_trials == 3


def test_gpu_hours_are_those_of_stored_epochs_by_whichever_driver(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep(early_stopping="none", budget={"max_gpu_hours": 3.5 / 3600})
    for epoch in (1, 2, 3):
        conductor = sweep.conduct()
        conductor.gpus_per_trial = 0.5
        trial = next_of(conductor)
        conductor.measured(trial.number, trial.attempt, _seconds(epoch, 2.0))
        assert conductor.measured(trial.number, trial.attempt, _seconds(epoch, 9.0)) is False, "counted once"
        assert not conductor.is_out_of_budget
    assert sweep.store.sweep(sweep.id).gpu_seconds == 3.0
    conductor.measured(trial.number, trial.attempt, _seconds(4, 2.0))
    assert conductor.is_out_of_budget


def _seconds(epoch: int, seconds: float) -> Measurement:
    return Measurement(epoch=epoch, metrics={"validation_knn_accuracy": 0.5}, seconds=seconds)


def test_seconds_without_a_driver_are_not_spent(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep(budget={"max_seconds": 60})
    sweep.conduct()
    sweep.lease.renew(40.0)
    sweep.clock.now += 3600
    conductor = sweep.conduct()
    assert not conductor.is_out_of_budget
    next_of(conductor)
    sweep.clock.now += 20
    assert conductor.is_out_of_budget
