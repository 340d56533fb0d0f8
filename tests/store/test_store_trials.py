"""The life of a trial: attempts, measurements in order, one end that never changes."""

import math
from collections.abc import Callable

import pytest
from situations import (
    CHECKPOINT,
    ENDS,
    PARAMETERS,
    PLACE,
    Clock,
    claimed,
    events_after,
    in_the_middle,
    measurement,
    picture,
    spec,
)
from sqlalchemy.exc import IntegrityError, StatementError

from care_sweep.errors import NotFound
from care_sweep.spec import Measurement, SweepState, TrialState
from care_sweep.store import AttemptRecord, Lease, MeasurementRecord, Store, sweeps


def _refused(store: Store, write: Callable[[], object], error: type[Exception] = AssertionError) -> None:
    before = picture(store)
    with pytest.raises(error):
        write()
    assert picture(store) == before


@pytest.fixture
def lease(store: Store) -> Lease:
    """Its sweep has one trial, 0, which runs."""
    lease = claimed(store)
    lease.start_attempt(0, 1, PARAMETERS, is_baseline=True)
    return lease


def test_a_first_attempt_creates_the_trial(store: Store, clock: Clock) -> None:
    lease = claimed(store)
    clock.now += 5
    lease.start_attempt(3, 1, PARAMETERS, is_baseline=True)

    trial = store.trial(lease.sweep_id, 3)
    assert (trial.number, trial.state, trial.attempt, trial.is_baseline) == (3, TrialState.RUNNING, 1, True)
    assert (trial.started_at, trial.finished_at, trial.last_epoch, trial.value) == (clock.now, None, 0, None)
    assert (trial.metrics, trial.checkpoint, trial.reason, trial.message) == ({}, None, None, None)
    assert store.attempts(lease.sweep_id, 3) == [AttemptRecord(1, clock.now, None, None, None)]
    lease.place_attempt(3, 1, PLACE)
    assert store.attempts(lease.sweep_id, 3) == [AttemptRecord(1, clock.now, None, None, None, PLACE)]


def test_parameters_come_back_with_value_and_type(store: Store) -> None:
    parameters = {
        "a": 1,
        "b": 1.0,
        "c": True,
        "d": 0.1 + 0.2,
        "e": 5e-324,
        "f": 2**60,
        "g": "ä\n\x00'\"",
        "h": "",
    }
    lease = claimed(store)
    lease.start_attempt(0, 1, parameters, is_baseline=False)
    found = store.trial(lease.sweep_id, 0).parameters
    assert {k: (v, type(v)) for k, v in found.items()} == {k: (v, type(v)) for k, v in parameters.items()}


def test_a_trial_number_is_given_once(store: Store, lease: Lease) -> None:
    _refused(store, lambda: lease.start_attempt(0, 1, {}, is_baseline=False), IntegrityError)


# --- measurements ---


def test_measurements_are_kept_by_trial_and_epoch(store: Store, lease: Lease, clock: Clock) -> None:
    lease.start_attempt(1, 1, PARAMETERS, is_baseline=False)
    for number, epoch in [(1, 1), (0, 1), (0, 2), (1, 2), (0, 3)]:
        clock.now += 1
        lease.record(number, 1, measurement(epoch, accuracy=number + epoch / 10))

    rows = store.measurements(lease.sweep_id)
    assert [(row.trial_number, row.epoch) for row in rows] == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2)]
    assert store.measurements(lease.sweep_id, 1) == [row for row in rows if row.trial_number == 1]
    assert store.measurements(lease.sweep_id, 7) == []
    expected = measurement(3, accuracy=0.3)
    assert rows[2] == MeasurementRecord(0, 3, 1, expected.metrics, expected.seconds, clock.now)
    trial = store.trial(lease.sweep_id, 0)
    assert (trial.last_epoch, trial.metrics, trial.state) == (3, expected.metrics, TrialState.RUNNING)


def test_curves_are_those_of_one_metric_and_one_sweep(
    store: Store, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read in parts, one of which ends within a trial."""
    monkeypatch.setattr(sweeps, "_ROWS_AT_A_TIME", 2)
    other = claimed(store)
    for one, number in [(lease, 1), (other, 0)]:
        one.start_attempt(number, 1, PARAMETERS, is_baseline=False)
        for epoch in (1, 2):
            one.record(number, 1, measurement(epoch, accuracy=0.1 + 0.2 * number + epoch / 10))
    with_more = measurement(1).model_copy(update={"metrics": {"loss": 0.1 + 0.2}})
    lease.record(0, 1, with_more)

    accuracies = store.curves(lease.sweep_id, "validation_knn_accuracy")
    assert accuracies == {1: {1: 0.1 + 0.2 + 1 / 10, 2: 0.1 + 0.2 + 2 / 10}}
    assert store.curves(lease.sweep_id, "loss") == {0: {1: 0.1 + 0.2}, 1: {1: 1 / 3, 2: 1 / 3}}
    assert store.curves(other.sweep_id, "absent") == {}
    with pytest.raises(NotFound, match="no sweep 'absent'"):
        store.curves("absent", "loss")


@pytest.mark.parametrize("epoch", [1, 2, 4, 100])
@pytest.mark.parametrize("state", [None, TrialState.COMPLETE])
def test_an_epoch_twice_or_out_of_order_is_refused(
    store: Store, lease: Lease, epoch: int, state: TrialState | None
) -> None:
    lease.record(0, 1, measurement(1))
    lease.record(0, 1, measurement(2))
    _refused(store, lambda: lease.record(0, 1, measurement(epoch), state=state))


def test_only_the_present_attempt_measures(store: Store, lease: Lease) -> None:
    lease.interrupt_trial(0, reason="worker lost")
    lease.start_attempt(0, 2, PARAMETERS, is_baseline=True)
    for attempt in (1, 3):
        _refused(store, lambda attempt=attempt: lease.record(0, attempt, measurement(1)))  # type: ignore[misc]
    lease.record(0, 2, measurement(1))


def test_a_trial_that_is_not_there_cannot_be_written(store: Store, lease: Lease) -> None:
    _refused(store, lambda: lease.record(7, 1, measurement(1)))
    _refused(store, lambda: lease.start_attempt(7, 2, {}, is_baseline=False))
    _refused(store, lambda: lease.finish_trial(7, TrialState.FAILED))
    _refused(store, lambda: lease.interrupt_trial(7, reason="worker lost"))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_is_refused(store: Store, lease: Lease, number: float) -> None:
    metrics = Measurement.model_construct(epoch=1, metrics={"loss": number}, seconds=1.0, checkpoint=None)
    complete = TrialState.COMPLETE
    # psycopg writes JSON after SQLAlchemy could wrap its errors
    refusal = (StatementError, ValueError)
    _refused(store, lambda: lease.record(0, 1, metrics), refusal)
    _refused(store, lambda: lease.record(0, 1, measurement(1), state=complete, value=number), refusal)
    _refused(store, lambda: lease.start_attempt(1, 1, {"a": number}, is_baseline=False), refusal)
    _refused(store, lambda: store.report_cluster("runner", {"load": number}), refusal)


# --- ends ---


@pytest.mark.parametrize("end", ENDS)
def test_a_measurement_and_the_end_are_one(store: Store, lease: Lease, clock: Clock, end: TrialState) -> None:
    before = store.events(lease.sweep_id)
    value = 0.75 if end is TrialState.COMPLETE else None
    clock.now += 9
    lease.record(0, 1, measurement(1, checkpoint=CHECKPOINT), state=end, value=value)

    trial = store.trial(lease.sweep_id, 0)
    assert (trial.state, trial.value, trial.checkpoint, trial.finished_at) == (
        end,
        value,
        CHECKPOINT,
        clock.now,
    )
    assert (trial.last_epoch, trial.metrics) == (1, measurement(1).metrics)
    assert store.attempts(lease.sweep_id, 0)[-1].finished_at == clock.now
    assert events_after(store, lease.sweep_id, before) == [("measurement", 0, 1), ("trial", 0, end)]
    assert store.sweep(lease.sweep_id).trial_counts == {end: 1}


def test_a_measurement_whose_end_is_refused_is_not_kept(store: Store, lease: Lease) -> None:
    _refused(store, lambda: lease.record(0, 1, measurement(1), state=TrialState.RUNNING))
    _refused(store, lambda: lease.finish_trial(0, TrialState.WAITING))


def test_a_trial_can_end_without_a_measurement(store: Store, lease: Lease, clock: Clock) -> None:
    lease.record(0, 1, measurement(1))
    clock.now += 9
    lease.finish_trial(0, TrialState.FAILED, reason="exception", message="Traceback …")

    trial = store.trial(lease.sweep_id, 0)
    assert (trial.state, trial.reason, trial.message) == (TrialState.FAILED, "exception", "Traceback …")
    assert (trial.value, trial.checkpoint, trial.last_epoch, trial.finished_at) == (None, None, 1, clock.now)
    attempt = store.attempts(lease.sweep_id, 0)[-1]
    assert (attempt.reason, attempt.message, attempt.finished_at) == ("exception", "Traceback …", clock.now)


@pytest.mark.parametrize("end", ENDS)
def test_an_end_never_changes(store: Store, lease: Lease, end: TrialState) -> None:
    lease.record(0, 1, measurement(1), state=end)
    ended = store.trial(lease.sweep_id, 0)

    _refused(store, lambda: lease.record(0, 1, measurement(2)))
    _refused(store, lambda: lease.record(0, 1, measurement(2), state=TrialState.COMPLETE, value=1.0))
    _refused(store, lambda: lease.finish_trial(0, TrialState.FAILED))
    _refused(store, lambda: lease.interrupt_trial(0, reason="worker lost"))
    _refused(store, lambda: lease.start_attempt(0, 2, PARAMETERS, is_baseline=True))
    _refused(store, lambda: lease.start_attempt(0, 1, PARAMETERS, is_baseline=True), IntegrityError)
    lease.finish_sweep(SweepState.FAILED)
    assert store.trial(lease.sweep_id, 0) == ended


# --- interruptions ---


def test_an_interrupted_trial_waits_and_goes_on_as_the_next_attempt(
    store: Store, lease: Lease, clock: Clock
) -> None:
    begun = clock.now
    lease.record(0, 1, measurement(1))
    clock.now += 10
    lease.interrupt_trial(0, reason="worker lost", message="node 3 is gone")

    waiting = store.trial(lease.sweep_id, 0)
    assert (waiting.state, waiting.attempt) == (TrialState.WAITING, 1)
    assert (waiting.reason, waiting.message) == ("worker lost", "node 3 is gone")
    clock.now += 10
    lease.start_attempt(0, 2, PARAMETERS, is_baseline=True)
    lease.record(0, 2, measurement(2), state=TrialState.COMPLETE, value=0.5)

    trial = store.trial(lease.sweep_id, 0)
    assert (trial.state, trial.attempt, trial.reason, trial.message) == (TrialState.COMPLETE, 2, None, None)
    assert (trial.started_at, trial.finished_at, trial.last_epoch) == (begun, begun + 20, 2)
    assert [row.attempt for row in store.measurements(lease.sweep_id, 0)] == [1, 2]
    assert store.attempts(lease.sweep_id, 0) == [
        AttemptRecord(1, begun, begun + 10, "worker lost", "node 3 is gone"),
        AttemptRecord(2, begun + 20, begun + 20, None, None),
    ]


def test_an_attempt_is_interrupted_once(store: Store, lease: Lease) -> None:
    lease.interrupt_trial(0, reason="worker lost")
    _refused(store, lambda: lease.interrupt_trial(0, reason="worker lost"))


@pytest.mark.parametrize("attempt", [3, 7])
def test_attempts_are_counted_one_by_one(store: Store, lease: Lease, attempt: int) -> None:
    _refused(store, lambda: lease.start_attempt(0, attempt, PARAMETERS, is_baseline=True))


def test_an_attempt_whose_driver_died_ends_when_the_next_begins(
    store: Store, lease: Lease, clock: Clock
) -> None:
    """Its own end and reason: not those of the attempt after it."""
    begun = clock.now
    second = store.claim(store.sweep(lease.sweep_id), "other")
    assert second is not None
    clock.now += 60
    second.start_attempt(0, 2, PARAMETERS, is_baseline=True)
    clock.now += 60
    second.finish_trial(0, TrialState.FAILED, reason="exception", message="Traceback …")

    assert store.attempts(lease.sweep_id, 0) == [
        AttemptRecord(1, begun, begun + 60, "driver lost", None),
        AttemptRecord(2, begun + 60, begun + 120, "exception", "Traceback …"),
    ]


# --- clocks that disagree ---


def test_nothing_ends_before_it_began(store: Store, clock: Clock) -> None:
    """Each hand that moves a sweep on has a clock an hour behind that of the hand before."""

    def hour_back() -> None:
        clock.now -= 3600

    lease = in_the_middle(store)
    hour_back()
    lease.interrupt_trial(0, reason="worker lost")
    hour_back()
    lease.start_attempt(0, 2, PARAMETERS, is_baseline=True)
    second = store.claim(store.sweep(lease.sweep_id), "other")
    assert second is not None
    hour_back()
    second.start_attempt(0, 3, PARAMETERS, is_baseline=True)
    second.start_attempt(1, 2, PARAMETERS, is_baseline=False)
    hour_back()
    second.record(1, 2, measurement(1), state=TrialState.COMPLETE, value=0.5)
    second.release()
    third = store.claim(store.sweep(lease.sweep_id), "third")
    assert third is not None
    third.start_attempt(0, 4, PARAMETERS, is_baseline=True)
    hour_back()
    third.finish_sweep(SweepState.SUCCEEDED)
    waiting, _ = store.submit(spec())
    hour_back()
    assert store.claim(waiting, "runner") is not None

    sweep, claimed_later = store.sweep(lease.sweep_id), store.sweep(waiting.id)
    assert claimed_later.started_at == claimed_later.created_at
    spans = [(sweep.created_at, sweep.started_at), (sweep.started_at, sweep.finished_at)]
    for trial in store.trials(lease.sweep_id).items:
        spans.append((trial.started_at, trial.finished_at))
        spans += [(a.started_at, a.finished_at) for a in store.attempts(lease.sweep_id, trial.number)]
    assert len(spans) == 2 + 4 + 4 + 2 + 1 + 1
    assert [span for span in spans if None in span or span[0] > span[1]] == []  # type: ignore[operator]


# --- the end of the sweep ---


@pytest.mark.parametrize("end", [state for state in SweepState if state.is_terminal])
def test_the_end_of_a_sweep_cancels_its_open_trials(store: Store, clock: Clock, end: SweepState) -> None:
    lease = in_the_middle(store)
    before, ended = store.events(lease.sweep_id), store.trials(lease.sweep_id).items[2:]
    clock.now += 9
    lease.finish_sweep(end, reason="why", message="the words")

    record = store.sweep(lease.sweep_id)
    assert (record.state, record.reason, record.message) == (end, "why", "the words")
    assert record.finished_at == clock.now
    assert store.trials(lease.sweep_id).items[2:] == ended
    for number in (0, 1):
        trial = store.trial(lease.sweep_id, number)
        assert (trial.state, trial.reason, trial.finished_at) == (
            TrialState.CANCELLED,
            "sweep ended",
            clock.now,
        )
        assert store.attempts(lease.sweep_id, number)[-1].finished_at is not None
    assert store.attempts(lease.sweep_id, 1)[-1].reason == "worker lost"
    assert events_after(store, lease.sweep_id, before) == [
        ("trial", 0, "CANCELLED"),
        ("trial", 1, "CANCELLED"),
        ("sweep", None, end),
    ]
    assert record.trial_counts == {TrialState.CANCELLED: 2, TrialState.COMPLETE: 1, TrialState.FAILED: 1}


def test_a_sweep_ends_in_an_end_only(store: Store, lease: Lease) -> None:
    _refused(store, lambda: lease.finish_sweep(SweepState.STOPPING))
