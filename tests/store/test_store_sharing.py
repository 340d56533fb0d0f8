"""What active sweeps want of a cluster, and what tokens may take: the same on every database."""

from typing import Any

import pytest
from situations import (
    PARAMETERS,
    PLACE,
    Clock,
    claimed,
    in_the_middle,
    measurement,
    spec,
    together,
)
from sqlalchemy import update

from care_sweep.errors import QuotaExceeded
from care_sweep.spec import Place, SweepSpec, SweepState, TrialState
from care_sweep.store import Caller, DemandRecord, Lease, Quota, Scope, Store
from care_sweep.store.schema import attempts

WANTED = {"priority": 1.0, "cpus_per_trial": 1, "gpus_per_trial": 0.0, "share_seconds": 0.0}
NO_QUOTA = {"token_id": None, "max_concurrent_trials": None, "is_quota_spent": False}


def caller(store: Store, **limits: Any) -> Caller:
    _, token = store.tokens.create("alice", Scope.SUBMIT, expires_in_seconds=None, quota=Quota(**limits))
    return Caller("alice", Scope.SUBMIT, token.id)


def more(document: SweepSpec) -> SweepSpec:
    return document.model_copy(update={"num_trials": 40})


def ready(lease: Lease) -> Lease:
    lease.note_gpus(0.0, None)
    lease.ready(True)
    return lease


def test_a_driven_sweep_wants_what_is_left_of_it(store: Store) -> None:
    lease = ready(in_the_middle(store))  # of 4 trials one runs, one waits
    store.submit(spec())  # waits
    assert store.demands() == [
        DemandRecord(id=lease.sweep_id, num_wanted=2, num_running=1, places={}, **WANTED, **NO_QUOTA)
    ]


def test_where_trials_run_is_known_while_they_do(store: Store) -> None:
    lease = claimed(store)
    for number in range(3):
        lease.start_attempt(number, 1, PARAMETERS, is_baseline=False)
        assert [one.places for one in store.demands()] == [{PLACE.spot: number} if number else {}]
        lease.place_attempt(number, 1, PLACE)
    lease.finish_trial(0, TrialState.FAILED)
    lease.interrupt_trial(1, reason="preempted")
    assert [one.places for one in store.demands()] == [{PLACE.spot: 1}]
    lease.start_attempt(1, 2, PARAMETERS, is_baseline=False)
    assert [one.places for one in store.demands()] == [{PLACE.spot: 1}], "the second attempt is elsewhere"


def test_of_a_trial_that_said_nothing_of_its_gpus_the_node_is_known(store: Store) -> None:
    lease = claimed(store)
    lease.start_attempt(0, 1, PARAMETERS, is_baseline=False)
    said = PLACE.model_dump(exclude={"gpus"})  # as rows have it that an older program wrote
    with store.engine.begin() as connection:
        connection.execute(update(attempts).values(place=said))
    assert [one.places for one in store.demands()] == [{(PLACE.node_id, ()): 1}]
    assert [one.place for one in store.attempts(lease.sweep_id, 0)] == [Place.model_validate(said)]


def test_a_sweep_whose_driver_cannot_begin_trials_wants_what_runs(store: Store) -> None:
    lease = in_the_middle(store)
    assert [one.num_wanted for one in store.demands()] == [1]
    ready(lease)
    lease.release()
    store.claim(store.sweep(lease.sweep_id), "another")
    assert [one.num_wanted for one in store.demands()] == [0]


def test_a_sweep_that_drains_wants_no_new_trial(store: Store) -> None:
    lease = ready(claimed(store))
    lease.start_attempt(0, 1, PARAMETERS, is_baseline=True)
    assert [one.num_wanted for one in store.demands()] == [4]
    store.control.stop(lease.sweep_id)
    assert [one.num_wanted for one in store.demands()] == [1]


def test_a_sweep_wants_no_more_than_it_may_run_at_once(store: Store) -> None:
    limited = spec().model_copy(update={"max_concurrent_trials": 3, "priority": 2.5})
    lease = store.claim(store.submit(limited)[0], "runner")
    assert lease is not None
    ready(lease)
    assert [(one.num_wanted, one.priority) for one in store.demands()] == [(3, 2.5)]


def test_what_was_chosen_for_auto_is_what_a_trial_wants(store: Store) -> None:
    lease = claimed(store)
    lease.ready(True)
    assert [(one.gpus_per_trial, one.num_wanted) for one in store.demands()] == [(None, 1)], "it is timed"
    lease.note_gpus(0.25, "four fit")
    assert [(one.gpus_per_trial, one.num_wanted) for one in store.demands()] == [(0.25, 4)]


def test_nobody_wants_anything_where_nobody_drives(store: Store) -> None:
    claimed(store).release()
    assert store.demands() == []


def test_what_a_sweep_has_had_is_counted_from_what_it_is_taken_to_have_had(store: Store) -> None:
    lease = claimed(store)
    lease.start_attempt(0, 1, PARAMETERS, is_baseline=False)
    for epoch, had in ((1, 52.0), (2, 54.0)):
        lease.record(0, 1, measurement(epoch), share_seconds=2.0, least_share_seconds=50.0)
        assert [one.share_seconds for one in store.demands()] == [had]


def test_who_has_waited_longest_for_its_priority_gets_a_driver_first(store: Store, clock: Clock) -> None:
    first, second = store.submit(spec())[0].id, store.submit(spec())[0].id
    clock.now += 60
    third = store.submit(spec().model_copy(update={"priority": 2.0}))[0].id
    clock.now += 50
    assert [hold.id for hold in store.queued(limit=10)] == [first, second, third]
    clock.now += 20
    assert [hold.id for hold in store.queued(limit=2)] == [third, first]
    store.control.extend(second, lambda document: document.model_copy(update={"priority": 3.0}))
    assert [hold.id for hold in store.queued(limit=2)] == [second, third]


def test_priorities_hold_on_a_machine_whose_clock_is_behind(store: Store, clock: Clock) -> None:
    urgent = store.submit(spec().model_copy(update={"priority": 4.0}))[0].id
    patient = store.submit(spec())[0].id
    clock.now += 10
    last = store.submit(spec())[0].id
    clock.now -= 3600
    assert [hold.id for hold in store.queued(limit=10)] == [urgent, patient, last]


def test_who_gives_way_or_comes_back_waits_anew(store: Store, clock: Clock) -> None:
    lease = in_the_middle(store)
    paused = store.submit(spec())[0].id
    store.control.pause(paused)
    clock.now += 60
    waiting = store.submit(spec())[0].id
    clock.now -= 60  # as on a machine that is behind
    lease.give_way()
    clock.now += 62
    store.control.resume(paused)
    clock.now += 60
    assert [hold.id for hold in store.queued(limit=10)] == [waiting, lease.sweep_id, paused]
    sweep = store.sweep(lease.sweep_id)
    assert (sweep.state, sweep.lease_owner) == (SweepState.QUEUED, None)
    assert sweep.message == "waiting for its next turn: other sweeps are driven"
    assert store.trial(sweep.id, 0).state is TrialState.WAITING


@pytest.mark.parametrize("wish", ["pause", "cancel", "stop"])
def test_what_a_user_wants_stays_though_the_driver_gives_way(store: Store, wish: str) -> None:
    lease = in_the_middle(store)
    wanted = getattr(store.control, wish)(lease.sweep_id)
    lease.give_way()
    assert store.sweep(lease.sweep_id).state is wanted.state


def test_a_token_has_no_more_sweeps_at_once_than_its_quota(store: Store) -> None:
    alice = store.seen_by(caller(store, max_sweeps=2))
    first, _ = alice.submit(spec())
    alice.submit(spec(), idempotency_key="k", body_sha256="b")
    with pytest.raises(QuotaExceeded, match="2 sweeps of this token have not ended, and its quota is 2"):
        alice.submit(spec())
    assert not alice.submit(spec(), idempotency_key="k", body_sha256="b")[1], "which was accepted before"
    store.seen_by(caller(store)).submit(spec())
    alice.control.cancel(first.id)
    alice.submit(spec())


def test_who_submit_at_once_do_not_pass_the_quota_together(store: Store) -> None:
    alice = store.seen_by(caller(store, max_sweeps=3))

    def submit() -> bool:
        try:
            alice.submit(spec())
        except QuotaExceeded:
            return False
        return True

    assert sum(together([submit] * 8)) == 3


def test_an_ended_sweep_does_not_go_on_past_the_quota(store: Store) -> None:
    alice = store.seen_by(caller(store, max_sweeps=1))
    ended, _ = alice.submit(spec())
    alice.control.stop(ended.id)
    alice.submit(spec())
    with pytest.raises(QuotaExceeded):
        alice.control.extend(ended.id, more)


def test_an_ended_sweep_counts_for_whose_token_lets_it_go_on(store: Store) -> None:
    """Else its first token's spent quota would end it again at once, and the second's would be none."""
    first, second = caller(store, max_gpu_hours=0.5), caller(store, max_sweeps=1)
    sweep, _ = store.seen_by(first).submit(spec())
    store.seen_by(first).control.stop(sweep.id)
    store.seen_by(second).control.extend(sweep.id, more)
    assert store.sweep(sweep.id).token_id == second.token_id
    with pytest.raises(QuotaExceeded):
        store.seen_by(second).submit(spec())


def test_gpu_hours_count_for_the_token_though_the_sweep_is_deleted(store: Store) -> None:
    alice = store.seen_by(caller(store, max_gpu_hours=1.0))
    sweep, _ = alice.submit(spec())
    lease = store.claim(sweep, "runner")
    assert lease is not None
    lease.start_attempt(0, 1, PARAMETERS, is_baseline=False)
    lease.record(0, 1, measurement(1), gpu_seconds=3599.0)
    assert [one.is_quota_spent for one in store.demands()] == [False]
    lease.record(0, 1, measurement(2), gpu_seconds=1.0)
    assert [one.is_quota_spent for one in store.demands()] == [True]
    lease.release()
    alice.control.cancel(sweep.id)
    again = store.claim(store.sweep(sweep.id), "runner")
    assert again is not None
    again.finish_sweep(store.sweep(sweep.id).state.CANCELLED)
    alice.control.delete(sweep.id)
    with pytest.raises(QuotaExceeded, match="have taken 1 GPU hours, and its quota is 1"):
        alice.submit(spec())
    assert [token.gpu_seconds for token in store.tokens.list()] == [3600.0]
