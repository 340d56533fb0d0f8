"""What users may do to a sweep, on each database: the table of moves, revisions, extension."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from situations import PARAMETERS, Clock, claimed, events_after, in_the_middle, measurement, picture, spec

from care_sweep.errors import Conflict, LeaseLost, NotFound, RevisionMismatch
from care_sweep.spec import SweepSpec, SweepState, TrialState
from care_sweep.store import Lease, Store, SweepRecord


def _more(spec: SweepSpec, num_trials: int = 9) -> SweepSpec:
    return spec.model_copy(update={"num_trials": num_trials})


MOVES: dict[str, Callable[[Store, str], object]] = {
    "pause": lambda store, sweep_id: store.control.pause(sweep_id),
    "resume": lambda store, sweep_id: store.control.resume(sweep_id),
    "stop": lambda store, sweep_id: store.control.stop(sweep_id),
    "cancel": lambda store, sweep_id: store.control.cancel(sweep_id),
    "extend": lambda store, sweep_id: store.control.extend(sweep_id, _more),
    "enqueue": lambda store, sweep_id: store.control.enqueue(sweep_id, PARAMETERS),
    "delete": lambda store, sweep_id: store.control.delete(sweep_id),
}

TABLE = """
            QUEUED     RUNNING   PAUSED     STOPPING  SUCCEEDED  FAILED   CANCELLED
pause       PAUSED     PAUSED    -          -         -          -        -
resume      -          -         QUEUED     -         -          -        -
stop        SUCCEEDED  STOPPING  SUCCEEDED  -         -          -        -
cancel      CANCELLED  STOPPING  CANCELLED  STOPPING  -          -        -
extend      QUEUED     RUNNING   PAUSED     -         QUEUED     QUEUED   -
enqueue     QUEUED     RUNNING   PAUSED     -         -          -        -
delete      -          -         -          -         gone       gone     gone
"""
"""What becomes of a sweep in the state above when a user asks for what stands on the left; - is a conflict.
"""


def _table() -> dict[tuple[str, SweepState], str]:
    head, *rows = [line.split() for line in TABLE.strip().splitlines()]
    return {(row[0], SweepState(s)): cell for row in rows for s, cell in zip(head, row[1:], strict=True)}


def _sweep_in(store: Store, state: SweepState) -> str:
    """A sweep in that state, which has a trial unless it waits for its first runner."""
    if state is SweepState.QUEUED:
        return store.submit(spec())[0].id
    lease = claimed(store)
    lease.start_attempt(0, 1, PARAMETERS, is_baseline=False)
    if state is SweepState.PAUSED:
        store.control.pause(lease.sweep_id)
        lease.release()
    elif state is SweepState.STOPPING:
        store.control.stop(lease.sweep_id)
    elif state.is_terminal:
        lease.finish_sweep(state, reason="a test")
    return lease.sweep_id


@pytest.mark.parametrize("state", SweepState)
@pytest.mark.parametrize("move", MOVES)
def test_every_move_from_every_state(store: Store, move: str, state: SweepState) -> None:
    sweep_id, expected = _sweep_in(store, state), _table()[move, state]
    before, told = picture(store), store.events(sweep_id)
    if expected == "-":
        with pytest.raises(Conflict, match=f"cannot {move} the sweep: it .*{state}"):
            MOVES[move](store, sweep_id)
        assert picture(store) == before
    elif expected == "gone":
        MOVES[move](store, sweep_id)
        with pytest.raises(NotFound):
            store.sweep(sweep_id)
        assert not any(picture(store).values())
    else:
        seen = store.sweep(sweep_id)
        MOVES[move](store, sweep_id)
        after = store.sweep(sweep_id)
        assert after.state is SweepState(expected)
        assert after.revision == seen.revision + 1
        has_moved = after.state is not state or move in ("stop", "cancel")
        assert [e[0] for e in events_after(store, sweep_id, told)][-1:] == ["sweep"] * has_moved
        if after.state.is_terminal:
            assert all(t.state.is_terminal for t in store.trials(sweep_id).items)


@pytest.mark.parametrize("move", MOVES)
def test_what_is_not_there_cannot_be_moved(store: Store, move: str) -> None:
    with pytest.raises(NotFound, match="no sweep 'absent'"):
        MOVES[move](store, "absent")
    with pytest.raises(NotFound, match="no sweep 'absent'"):
        store.control.stop_trial("absent", 0)


# --- what the driver hears ---


def test_a_wish_is_heard_once(store: Store) -> None:
    lease = claimed(store)
    first = store.wishes(lease.sweep_id, seen=0)
    assert first is not None
    assert (first.state, first.enqueued, first.stop_requested) == (SweepState.RUNNING, {}, frozenset())
    assert store.wishes(lease.sweep_id, seen=first.revision) is None
    lease.renew(2.5)
    assert store.wishes(lease.sweep_id, seen=first.revision) is None, "a sign of life is no wish"

    store.control.pause(lease.sweep_id)

    second = store.wishes(lease.sweep_id, seen=first.revision)
    assert second is not None
    assert second.state is SweepState.PAUSED


def test_a_paused_sweep_is_wound_down_by_its_holder(store: Store) -> None:
    lease = in_the_middle(store)
    store.control.pause(lease.sweep_id)
    lease.record(0, 1, measurement(2))
    lease.interrupt_trial(0, reason="paused")
    lease.release()
    paused = store.sweep(lease.sweep_id)
    assert (paused.state, paused.lease_owner) == (SweepState.PAUSED, None)
    assert paused.trial_counts.get(TrialState.RUNNING) is None

    resumed = store.control.resume(lease.sweep_id)
    with pytest.raises(LeaseLost):
        lease.renew()
    again = store.claim(resumed, "runner")
    assert again is not None
    again.start_attempt(0, 2, PARAMETERS, is_baseline=True)
    again.record(0, 2, measurement(3))


def test_a_release_leaves_no_trial_running(store: Store) -> None:
    lease = in_the_middle(store)
    lease.release()
    assert [t.state for t in store.trials(lease.sweep_id).items][:2] == [TrialState.WAITING] * 2
    (attempt,) = store.attempts(lease.sweep_id, 0)
    assert attempt.reason == "driver ended"
    assert attempt.finished_at is not None


def test_a_resume_before_the_driver_has_let_go_leaves_no_trial_running(store: Store) -> None:
    lease = in_the_middle(store)
    store.control.pause(lease.sweep_id)
    store.control.resume(lease.sweep_id)
    assert [t.state for t in store.trials(lease.sweep_id).items][:2] == [TrialState.WAITING] * 2
    assert all(a.reason == "paused" and a.finished_at for a in store.attempts(lease.sweep_id, 0))
    with pytest.raises(LeaseLost):
        lease.record(0, 1, measurement(2))


def test_an_open_trial_can_be_stopped_and_an_ended_one_cannot(store: Store) -> None:
    lease = in_the_middle(store)
    for number in (0, 1):
        store.control.stop_trial(lease.sweep_id, number)
    wishes = store.wishes(lease.sweep_id, seen=0)
    assert wishes is not None
    assert wishes.stop_requested == {0, 1}
    with pytest.raises(Conflict, match="trial 2 has already ended as COMPLETE"):
        store.control.stop_trial(lease.sweep_id, 2)
    with pytest.raises(NotFound, match="no trial 7"):
        store.control.stop_trial(lease.sweep_id, 7)
    lease.finish_trial(0, TrialState.CANCELLED, reason="stopped")
    wishes = store.wishes(lease.sweep_id, seen=0)
    assert wishes is not None
    assert wishes.stop_requested == {1}


def test_an_open_trial_that_nobody_drives_is_stopped_at_once(store: Store) -> None:
    lease = in_the_middle(store)
    store.control.pause(lease.sweep_id)
    lease.release(reason="paused")
    store.control.stop_trial(lease.sweep_id, 0)
    trial = store.trial(lease.sweep_id, 0)
    assert (trial.state, trial.reason) == (TrialState.CANCELLED, "stopped")
    assert trial.finished_at is not None


@pytest.mark.parametrize("wish", ["extend", "cancel", "pause", "enqueue"])
def test_a_wish_that_comes_as_a_sweep_ends_is_heard(store: Store, wish: str) -> None:
    lease = claimed(store)
    wishes = store.wishes(lease.sweep_id, seen=0)
    assert wishes is not None
    MOVES[wish](store, lease.sweep_id)
    before = picture(store)
    with pytest.raises(RevisionMismatch, match="a user has wished"):
        lease.finish_sweep(SweepState.SUCCEEDED, seen=wishes.revision)
    assert picture(store) == before
    heard = store.wishes(lease.sweep_id, seen=wishes.revision)
    assert heard is not None
    lease.finish_sweep(SweepState.SUCCEEDED, seen=heard.revision)


def test_an_ended_sweep_goes_on_only_with_trials_to_run(store: Store) -> None:
    lease = claimed(store)
    for number in range(4):
        lease.start_attempt(number, 1, PARAMETERS, is_baseline=False)
        lease.record(number, 1, measurement(1), state=TrialState.COMPLETE, value=0.5)
    lease.finish_sweep(SweepState.SUCCEEDED)
    before = picture(store)
    with pytest.raises(Conflict, match="give it a num_trials of more than 4"):
        store.control.extend(lease.sweep_id, lambda old: old.model_copy(update={"priority": 3.0}))
    assert picture(store) == before
    after = store.control.extend(lease.sweep_id, lambda old: old.model_copy(update={"num_trials": 5}))
    assert after.state is SweepState.QUEUED


def test_no_enqueued_point_is_dropped_by_a_smaller_number(store: Store) -> None:
    lease = claimed(store)
    store.control.enqueue(lease.sweep_id, PARAMETERS)
    with pytest.raises(Conflict, match="0 trials that have begun and the 1 enqueued; use 1 or more"):
        store.control.extend(lease.sweep_id, lambda spec: _more(spec, 0))


# --- extension ---


def test_what_has_ended_goes_on_with_all_it_has(store: Store, clock: Clock) -> None:
    lease = in_the_middle(store)
    lease.renew(7.0)
    lease.finish_sweep(SweepState.SUCCEEDED, reason="budget spent", message="it was short")
    trials = store.trials(lease.sweep_id)
    clock.now += 3600

    reopened = store.control.extend(lease.sweep_id, _more)

    assert (reopened.state, reopened.reason, reopened.message) == (SweepState.QUEUED, None, None)
    assert (reopened.finished_at, reopened.spec.num_trials) == (None, 9)
    assert reopened.active_seconds == 7.0, "an hour in which nobody drove it costs nothing"
    assert store.trials(lease.sweep_id) == trials
    again = store.claim(reopened, "runner")
    assert again is not None
    again.start_attempt(4, 1, PARAMETERS, is_baseline=False)


def test_a_revision_that_has_passed_changes_nothing(store: Store) -> None:
    lease = claimed(store)
    seen = store.sweep(lease.sweep_id).revision
    assert store.control.extend(lease.sweep_id, _more, revision=seen).spec.num_trials == 9
    before = picture(store)
    with pytest.raises(RevisionMismatch, match=f"revision {seen + 1}, not {seen}"):
        store.control.extend(lease.sweep_id, lambda old: _more(old, 20), revision=seen)
    assert picture(store) == before


def test_trials_that_have_begun_cannot_be_taken_away(store: Store) -> None:
    lease = in_the_middle(store)
    before = picture(store)
    with pytest.raises(Conflict, match=r"num_trials 3 is less than the 4 trials that have begun; use 4"):
        store.control.extend(lease.sweep_id, lambda old: _more(old, 3))
    assert picture(store) == before


def test_what_the_revision_raises_changes_nothing(store: Store) -> None:
    lease = claimed(store)
    before = picture(store)

    def refuse(_: SweepSpec) -> SweepSpec:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.control.extend(lease.sweep_id, refuse)
    assert picture(store) == before


# --- what was spent ---


def test_what_was_spent_is_counted_with_what_it_was_spent_on(store: Store) -> None:
    lease = claimed(store)
    lease.renew(2.0)
    lease.renew(0.5)
    lease.start_attempt(0, 1, PARAMETERS, is_baseline=False)
    lease.start_attempt(1, 1, PARAMETERS, is_baseline=False, search_seconds=0.25)
    trained = measurement(1).model_copy(update={"num_images": 512})
    lease.record(0, 1, trained, gpu_seconds=30.0, search_seconds=0.5)
    with pytest.raises(AssertionError):
        lease.record(0, 1, measurement(1), gpu_seconds=30.0)
    sweep = store.sweep(lease.sweep_id)
    assert (sweep.active_seconds, sweep.gpu_seconds) == (2.5, 30.0)
    assert (sweep.search_seconds, sweep.num_images) == (0.75, 512)


# --- random lives ---

_WISHES = ("pause", "resume", "stop", "cancel", "extend", "enqueue", "stop trial", "delete")
_DEEDS = ("claim", "obey", "start", "record", "end", "lose", "die", "finish", "stale write")
lives = st.lists(
    st.tuples(st.sampled_from((*_WISHES, *_DEEDS, *_DEEDS)), st.integers(0, 3)), min_size=1, max_size=30
)


class _Life:
    """A sweep in the hands of a user and of a driver, each of whom does whatever the hypothesis is."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.sweep_id = store.submit(spec())[0].id
        self.lease: Lease | None = None
        self.ended_trials: dict[int, Any] = {}
        self.is_deleted = False

    def step(self, kind: str, number: int) -> None:
        if self.is_deleted:
            return
        before = self.store.sweep(self.sweep_id)
        if kind in MOVES:
            self._wish(kind, before)
        elif kind == "stop trial":
            open_trials = [
                t.number for t in self.store.trials(self.sweep_id).items if not t.state.is_terminal
            ]
            if number in open_trials and not before.state.is_terminal:
                self.store.control.stop_trial(self.sweep_id, number)
        elif kind == "claim":
            stale, self.lease = self.lease, self.store.claim(before, "runner") or self.lease
            if stale is not None and stale is not self.lease:
                self._refused(stale)
        elif kind == "die":
            self.lease = None
        elif self.lease is not None:
            self._drive(self.lease, kind, number, before)
        if not self.is_deleted:
            self._look()

    def _wish(self, kind: str, before: SweepRecord) -> None:
        expected = _table()[kind, before.state]
        rows = picture(self.store)
        try:
            MOVES[kind](self.store, self.sweep_id)
        except Conflict:
            taken = kind == "enqueue" and expected != "-"  # there may be no room in the queue
            assert expected == "-" or taken
            assert picture(self.store) == rows
            return
        self.is_deleted = expected == "gone"
        if not self.is_deleted:
            assert self.store.sweep(self.sweep_id).state == expected

    def _drive(self, lease: Lease, kind: str, number: int, before: SweepRecord) -> None:
        trials = {t.number: t for t in self.store.trials(self.sweep_id).items}
        trial = trials.get(number)
        is_owned = before.lease_owner is not None and not before.state.is_terminal
        is_held = before.fencing_token == lease.token and is_owned
        if not is_held:
            self._refused(lease)
        elif kind == "obey":
            if before.state is SweepState.PAUSED:
                lease.release()
            elif before.state is SweepState.STOPPING:
                drained = before.reason == "stopped"
                lease.finish_sweep(SweepState.SUCCEEDED if drained else SweepState.CANCELLED)
        elif kind == "start" and (trial is None or trial.state is TrialState.WAITING):
            if trial is not None or number == len(trials):
                attempt = 1 if trial is None else trial.attempt + 1
                lease.start_attempt(number, attempt, PARAMETERS, is_baseline=False)
        elif kind == "finish":
            lease.finish_sweep(SweepState.SUCCEEDED if number % 2 else SweepState.FAILED)
        elif trial is not None and trial.state is TrialState.RUNNING:
            epoch = trial.last_epoch + 1
            if kind == "record":
                lease.record(number, trial.attempt, measurement(epoch), gpu_seconds=1.0)
            elif kind == "end":
                lease.record(number, trial.attempt, measurement(epoch), state=TrialState.COMPLETE, value=0.5)
            elif kind == "lose":
                lease.interrupt_trial(number, reason="worker lost")

    def _refused(self, lease: Lease) -> None:
        rows = picture(self.store)
        with pytest.raises(LeaseLost):
            lease.renew(1.0)
        with pytest.raises(LeaseLost):
            lease.start_attempt(3, 1, PARAMETERS, is_baseline=False)
        assert picture(self.store) == rows

    def _look(self) -> None:
        sweep, trials = self.store.sweep(self.sweep_id), self.store.trials(self.sweep_id).items
        for trial in trials:
            known = self.ended_trials.setdefault(trial.number, trial) if trial.state.is_terminal else None
            assert known is None or known == trial, "an end never changes"
        assert {t.number for t in trials} >= set(self.ended_trials)
        assert [t.number for t in trials] == list(range(len(trials)))
        if sweep.state.is_terminal:
            assert all(t.state.is_terminal for t in trials)
        assert (sweep.finished_at is not None) == sweep.state.is_terminal
        if sweep.lease_owner is None:
            assert not any(t.state is TrialState.RUNNING for t in trials)
        rows = self.store.measurements(self.sweep_id)
        for trial in trials:
            epochs = [row.epoch for row in rows if row.trial_number == trial.number]
            assert epochs == list(range(1, trial.last_epoch + 1))
        told = [e.data["state"] for e in self.store.events(self.sweep_id) if e.kind == "sweep"]
        assert told[-1] == sweep.state


def _live(store: Store, life: list[tuple[str, int]]) -> None:
    sweep = _Life(store)
    for kind, number in life:
        sweep.step(kind, number)
    if not sweep.is_deleted:
        if not store.sweep(sweep.sweep_id).state.is_terminal:
            store.control.cancel(sweep.sweep_id)
            if store.sweep(sweep.sweep_id).state is SweepState.STOPPING:
                lease = store.claim(store.sweep(sweep.sweep_id), "last")
                assert lease is not None
                lease.finish_sweep(SweepState.CANCELLED)
        store.control.delete(sweep.sweep_id)  # a database that grows makes every picture dearer


_shared = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(_shared, max_examples=60)
@given(lives)
def test_a_random_life(store: Store, life: list[tuple[str, int]]) -> None:
    _live(store, life)


@pytest.mark.full
@settings(_shared, max_examples=1000)
@given(lives)
def test_a_thousand_random_lives(store: Store, life: list[tuple[str, int]]) -> None:
    _live(store, life)
