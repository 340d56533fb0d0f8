"""Pages without gaps or repeats, events that can be resumed, clusters."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Event
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from situations import (
    PARAMETERS,
    Clock,
    claimed,
    in_the_middle,
    measurement,
    spec,
    together,
)

from care_sweep.errors import NotFound
from care_sweep.spec import SweepState, TrialState
from care_sweep.store import ClusterRecord, Lease, MeasurementRecord, OutcomeRecord, Page, Store, SweepRecord

_T = TypeVar("_T")

few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _all_pages(page_of: Callable[[str | None], Page[_T]], page_size: int) -> list[_T]:
    found: list[_T] = []
    token = None
    while True:
        page = page_of(token)
        found += page.items
        if page.next_token is None:
            return found
        assert len(page.items) == page_size
        token = page.next_token


def _fill(store: Store) -> Sequence[str]:
    """Eleven sweeps in every state, in order of acceptance."""
    if not store.sweeps(page_size=1).items:
        for number in range(11):
            record, _ = store.submit(spec(f"number {number}"))
            if number % 4 and (lease := store.claim(record, "runner")):
                if number % 4 == 2:
                    store.control.cancel(record.id)
                elif number % 4 == 3:
                    lease.finish_sweep(SweepState.SUCCEEDED)
    return [record.id for record in store.sweeps(oldest_first=True, page_size=100).items]


# --- pages ---


@few
@given(st.integers(1, 13), st.sets(st.sampled_from(list(SweepState))), st.booleans())
def test_pages_of_sweeps_have_no_gap_and_no_repeat(
    store: Store, page_size: int, states: set[SweepState], oldest_first: bool
) -> None:
    in_order = [_listed(store, sweep_id) for sweep_id in _fill(store)]
    wanted = [record for record in in_order if not states or record.state in states]

    found = _all_pages(
        lambda token: store.sweeps(
            states=list(states), page_size=page_size, page_token=token, oldest_first=oldest_first
        ),
        page_size,
    )
    assert found == (wanted if oldest_first else wanted[::-1])


def _listed(store: Store, sweep_id: str) -> SweepRecord:
    """A sweep as a list has it: whole, but for its queue."""
    sweep = store.sweep(sweep_id)
    assert sweep.enqueued == {}
    return replace(sweep, enqueued=None)


def test_sweeps_that_arrive_between_pages_shift_nothing(store: Store) -> None:
    ids = [store.submit(spec())[0].id for _ in range(6)]
    found: list[str] = []
    token = None
    for _ in range(3):
        page = store.sweeps(page_size=2, page_token=token)
        found += [record.id for record in page.items]
        token = page.next_token
        store.submit(spec())
    assert token is None
    assert found == ids[::-1]


def test_sweeps_count_their_own_trials(store: Store) -> None:
    first, second = in_the_middle(store), claimed(store)
    second.start_attempt(0, 1, PARAMETERS, is_baseline=False)
    newest, oldest = store.sweeps().items
    assert newest.trial_counts == {TrialState.RUNNING: 1}
    in_it = (TrialState.RUNNING, TrialState.WAITING, TrialState.COMPLETE, TrialState.FAILED)
    assert oldest.trial_counts == dict.fromkeys(in_it, 1)
    assert oldest == _listed(store, first.sweep_id)


@few
@given(st.integers(1, 6), st.sets(st.sampled_from(list(TrialState))))
def test_pages_of_trials_have_no_gap_and_no_repeat(
    store: Store, page_size: int, states: set[TrialState]
) -> None:
    if not store.sweeps(page_size=1).items:
        in_the_middle(store)
        in_the_middle(store)
    sweep_id = store.sweeps().items[0].id
    wanted = [store.trial(sweep_id, number) for number in range(4)]
    wanted = [trial for trial in wanted if not states or trial.state in states]

    assert list(store.trials(sweep_id, states=list(states)).items) == wanted
    found = _all_pages(
        lambda token: store.trials(sweep_id, states=list(states), page_size=page_size, page_token=token),
        page_size,
    )
    assert found == wanted


def test_trials_by_number(store: Store) -> None:
    sweep_id = in_the_middle(store).sweep_id
    every = store.trials(sweep_id).items
    assert store.trials(sweep_id, numbers={2, 0, 99}).items == [every[0], every[2]]
    assert store.trials(sweep_id, numbers=()).items == []


def test_outcomes_are_those_of_the_trials_that_are_over(store: Store) -> None:
    sweep_id = in_the_middle(store).sweep_id
    over = [trial for trial in store.trials(sweep_id).items if trial.state.is_terminal]
    assert 0 < len(over) < len(store.trials(sweep_id).items)
    assert store.outcomes(sweep_id) == [
        OutcomeRecord(trial.number, trial.parameters, trial.is_baseline, trial.state, trial.value)
        for trial in over
    ]
    with pytest.raises(NotFound):
        store.outcomes("nowhere")


@few
@given(st.integers(1, 8))
def test_measurements_a_few_at_a_time_have_no_gap_and_no_repeat(store: Store, limit: int) -> None:
    if not store.sweeps(page_size=1).items:
        for _ in range(2):
            lease = claimed(store)
            for number, num_epochs in ((0, 3), (1, 0), (2, 11), (3, 1)):
                lease.start_attempt(number, 1, PARAMETERS, is_baseline=False)
                for epoch in range(1, num_epochs + 1):
                    lease.record(number, 1, measurement(epoch))
    sweep_id = store.sweeps().items[0].id
    found: list[MeasurementRecord] = []
    after = None
    while rows := store.measurements(sweep_id, after=after, limit=limit):
        assert len(rows) <= limit
        found += rows
        after = (rows[-1].trial_number, rows[-1].epoch)
    assert found == store.measurements(sweep_id)
    assert len(found) == 15
    assert store.measurements(sweep_id, 2, after=(2, 4), limit=2) == store.measurements(sweep_id, 2)[4:6]


def test_training_time_of_each_trial(store: Store) -> None:
    """To the last bit the same, in whatever order the database sums."""
    lease, other = claimed(store), claimed(store)
    seconds = [0.1, 1e15, 0.1, 0.3]
    for number, times in ((0, seconds), (1, []), (2, seconds[::-1])):
        lease.start_attempt(number, 1, PARAMETERS, is_baseline=False)
        for epoch, each in enumerate(times, start=1):
            lease.record(number, 1, measurement(epoch).model_copy(update={"seconds": each}))
    assert store.trained_seconds(lease.sweep_id) == dict.fromkeys((0, 2), math.fsum(seconds))
    assert store.trained_seconds(other.sweep_id) == {}


@pytest.mark.parametrize("token", ["", "x", "-1", "1.5", "1 OR 1=1", "9" * 40, "²"])
def test_a_page_token_that_nobody_gave_is_refused(store: Store, token: str) -> None:
    lease = claimed(store)
    with pytest.raises(ValueError, match="unknown page token"):
        store.sweeps(page_token=token)
    with pytest.raises(ValueError, match="unknown page token"):
        store.trials(lease.sweep_id, page_token=token)


def test_an_empty_store_has_one_empty_page(store: Store) -> None:
    assert store.sweeps() == Page([], None)
    assert store.trials(claimed(store).sweep_id) == Page([], None)


# --- events ---


@few
@given(st.integers(1, 30))
def test_reading_on_after_any_event_has_no_gap(store: Store, limit: int) -> None:
    if not store.sweeps(page_size=1).items:
        leases = [in_the_middle(store), in_the_middle(store)]
        for number in range(10, 14):  # the events of two sweeps, interleaved
            for lease in leases:
                lease.start_attempt(number, 1, PARAMETERS, is_baseline=False)
    sweep_id = store.sweeps().items[0].id
    whole = store.events(sweep_id)
    sequences = [event.sequence for event in whole]
    assert sequences == sorted(set(sequences))
    assert {event.sweep_id for event in whole} == {sweep_id}

    read: list[Any] = []
    while part := store.events(sweep_id, after=read[-1].sequence if read else 0, limit=limit):
        assert len(part) <= limit
        read += part
    assert read == whole


def test_a_reader_misses_nothing_while_many_write(store: Store, other_store: Store) -> None:
    """What a reader has seen up to an event is all there will ever be up to it."""
    lease = claimed(store)
    done = Event()

    def write(first: int) -> list[int]:
        for number in range(first, first + 8):
            lease.start_attempt(number, 1, PARAMETERS, is_baseline=False)
            lease.record(number, 1, measurement(1), state=TrialState.PRUNED)
        return []

    def write_all() -> list[int]:
        together([lambda first=first: write(first) for first in (0, 100, 200)])  # type: ignore[misc]
        done.set()
        return []

    def follow() -> list[int]:
        seen: list[int] = []
        while True:
            is_last = done.is_set()
            part = other_store.events(lease.sweep_id, after=seen[-1] if seen else 0, limit=5)
            seen += [event.sequence for event in part]
            if is_last and not part:
                return seen

    _, seen = together([write_all, follow])

    assert seen == [event.sequence for event in store.events(lease.sweep_id)]
    assert len(seen) == 2 + 3 * 8 * 3


# --- a random life ---

numbers = st.integers(0, 2)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("start"), numbers),
        st.tuples(st.just("record"), numbers),
        st.tuples(st.just("end"), numbers, st.sampled_from([s for s in TrialState if s.is_terminal])),
        st.tuples(st.just("fail"), numbers),
        st.tuples(st.just("interrupt"), numbers),
        st.tuples(st.just("take over"), numbers),
        st.tuples(st.just("finish"), st.just(0)),
    ),
    max_size=20,
)


class _Model:
    """What a sweep's trials ought to be: state, attempt and last epoch by number."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.lease: Lease = claimed(store)
        self.trials: dict[int, tuple[str, int, int]] = {}

    def step(self, kind: str, number: int, end: TrialState = TrialState.FAILED) -> None:
        state, attempt, epoch = self.trials.get(number, ("WAITING", 0, 0))
        is_running = state == "RUNNING"
        lease = self.lease
        if kind == "start" and state == "WAITING":
            lease.start_attempt(number, attempt + 1, PARAMETERS, is_baseline=False)
            self.trials[number] = ("RUNNING", attempt + 1, epoch)
        elif kind == "record" and is_running:
            lease.record(number, attempt, measurement(epoch + 1))
            self.trials[number] = ("RUNNING", attempt, epoch + 1)
        elif kind == "end" and is_running:
            lease.record(number, attempt, measurement(epoch + 1), state=end)
            self.trials[number] = (end, attempt, epoch + 1)
        elif kind == "fail" and attempt and not TrialState(state).is_terminal:
            lease.finish_trial(number, TrialState.FAILED, reason="exception")
            self.trials[number] = ("FAILED", attempt, epoch)
        elif kind == "interrupt" and is_running:
            lease.interrupt_trial(number, reason="worker lost")
            self.trials[number] = ("WAITING", attempt, epoch)
        elif kind == "take over":
            taken = self.store.claim(self.store.sweep(lease.sweep_id), "other")
            assert taken is not None
            self.lease = taken
        elif kind == "finish":
            lease.finish_sweep(SweepState.SUCCEEDED)
            is_open = {n: not TrialState(t[0]).is_terminal for n, t in self.trials.items()}
            self.trials = {n: ("CANCELLED", *t[1:]) if is_open[n] else t for n, t in self.trials.items()}


@settings(few, max_examples=30)
@given(steps)
def test_any_life_of_a_sweep_is_as_its_events_tell_it(store: Store, life: list[tuple[Any, ...]]) -> None:
    model = _Model(store)
    for step in life:
        model.step(*step)
        if step[0] == "finish":
            break

    sweep_id = model.lease.sweep_id
    stored = {t.number: (t.state, t.attempt, t.last_epoch) for t in store.trials(sweep_id).items}
    assert stored == model.trials
    for number, (state, attempt, last_epoch) in stored.items():
        epochs = [row.epoch for row in store.measurements(sweep_id, number)]
        assert epochs == list(range(1, last_epoch + 1))
        attempts = store.attempts(sweep_id, number)
        assert [a.attempt for a in attempts] == list(range(1, attempt + 1))
        assert [a.attempt for a in attempts if a.finished_at is None] == (
            [attempt] if state is TrialState.RUNNING else []
        )
    told: dict[Any, Any] = {}
    for event in store.events(sweep_id):
        number = event.data.get("number")
        changed = {key: event.data[key] for key in ("state", "attempt", "epoch") if key in event.data}
        assert told.get(number, {}) | changed != told.get(number, {}), "an event tells of a change"
        told[number] = told.get(number, {}) | changed
    assert told.pop(None)["state"] == store.sweep(sweep_id).state
    assert {n: (t["state"], t["attempt"], t.get("epoch", 0)) for n, t in told.items()} == stored


# --- clusters ---


def test_the_newest_report_is_the_cluster_while_it_can_be_true(store: Store, clock: Clock) -> None:
    assert store.cluster() is None
    store.report_cluster("a", {"nodes": []})
    clock.now += 1
    store.report_cluster("b", {"nodes": [{"cpus": 2.0}], "dashboard": None})
    clock.now += 1
    store.report_cluster("a", {"nodes": [1, "ä"]})
    clock.now += 1

    reported_at = clock.now - 1
    for seconds, is_known in ((1, True), (60, True), (61, False), (-60, True), (-61, False)):
        clock.now = reported_at + seconds
        assert store.cluster() == ClusterRecord("a", {"nodes": [1, "ä"]}, reported_at, is_known), seconds


def test_a_store_that_answers_pings(store: Store) -> None:
    store.ping()
