"""One holder at a time: claims that two cannot win, and stale tokens that write nothing."""

import inspect
from collections.abc import Callable
from time import sleep

import pytest
from situations import (
    LEASE_WRITES,
    PARAMETERS,
    Clock,
    claimed,
    events_after,
    in_the_middle,
    measurement,
    picture,
    spec,
    together,
)

from care_sweep.errors import LeaseLost
from care_sweep.spec import SweepState
from care_sweep.store import Lease, Store

# --- claims ---


def test_a_claim_starts_a_sweep(store: Store, clock: Clock) -> None:
    queued, _ = store.submit(spec())
    before = store.events(queued.id)
    clock.now += 5

    lease = store.claim(queued, "runner")

    assert lease is not None
    record = store.sweep(queued.id)
    assert (lease.sweep_id, lease.token) == (queued.id, 1)
    assert (record.state, record.started_at) == (SweepState.RUNNING, clock.now)
    assert (record.lease_owner, record.fencing_token) == ("runner", 1)
    assert events_after(store, queued.id, before) == [("sweep", None, "RUNNING")]


def test_two_claimers_never_both_win(store: Store, other_store: Store) -> None:
    for _ in range(6):
        record, _ = store.submit(spec())
        for token in (1, 2):  # first as it waits, then as it is taken over
            record = store.sweep(record.id)
            leases = together(
                [lambda s=s, r=record: s.claim(r, "runner") for s in (store, other_store) * 4]  # type: ignore[misc]
            )
            won = [lease for lease in leases if lease is not None]
            assert [lease.token for lease in won] == [token]
            assert store.sweep(record.id).fencing_token == token


TOLD = {
    "renew": [],
    "explain": [("sweep", None, "RUNNING")],
    "ready": [],
    "note_gpus": [("sweep", None, "RUNNING")],
    "start_attempt": [("trial", 9, "RUNNING")],
    "start_attempt again": [("trial", 1, "RUNNING")],
    "place_attempt": [],
    "record": [("measurement", 0, 2)],
    "record and end": [("measurement", 0, 2), ("trial", 0, "COMPLETE")],
    "finish_trial": [("trial", 0, "FAILED")],
    "interrupt_trial": [("trial", 0, "WAITING")],
    "finish_sweep": [("trial", 0, "CANCELLED"), ("trial", 1, "CANCELLED"), ("sweep", None, "SUCCEEDED")],
    "forget_checkpoints": [],
    "release": [("trial", 0, "WAITING")],
    "give_way": [("trial", 0, "WAITING"), ("sweep", None, "QUEUED")],
}


def test_the_gpus_noted_last_are_those_of_the_sweep(store: Store) -> None:
    lease, other = in_the_middle(store), in_the_middle(store)
    assert store.sweep(lease.sweep_id).gpus_per_trial is None
    lease.note_gpus(1.0, "one fits")
    lease.note_gpus(0.25, "four fit")
    lease.explain("there is no room")
    assert store.sweep(lease.sweep_id).gpus_per_trial == 0.25
    assert store.sweep(other.sweep_id).gpus_per_trial is None


@pytest.mark.parametrize("name", LEASE_WRITES)
def test_a_write_is_told_once_and_is_a_sign_of_life(store: Store, clock: Clock, name: str) -> None:
    lease = in_the_middle(store)
    told, seen = store.events(lease.sweep_id), store.sweep(lease.sweep_id)
    clock.now += 1

    LEASE_WRITES[name](lease)

    assert events_after(store, lease.sweep_id, told) == TOLD[name]
    assert all(e.recorded_at == clock.now for e in store.events(lease.sweep_id, after=told[-1].sequence))
    assert store.sweep(lease.sweep_id).lease_counter == seen.lease_counter + 1
    before = picture(store)
    assert store.claim(seen, "thief") is None, "who read the sweep before cannot claim it"
    assert picture(store) == before


def test_a_record_read_before_a_cancel_cannot_claim(store: Store) -> None:
    lease = claimed(store)
    stale = store.sweep(lease.sweep_id)
    store.control.cancel(lease.sweep_id)
    assert store.claim(stale, "thief") is None


@pytest.mark.parametrize("end", [state for state in SweepState if state.is_terminal])
def test_an_ended_sweep_cannot_be_claimed(store: Store, end: SweepState) -> None:
    lease = in_the_middle(store)
    lease.finish_sweep(end)
    before = picture(store)
    assert store.claim(store.sweep(lease.sweep_id), "runner") is None
    assert picture(store) == before


def test_a_takeover_grows_the_token_and_keeps_everything_else(store: Store, clock: Clock) -> None:
    first = in_the_middle(store)
    before = store.sweep(first.sweep_id)
    trials, told = store.trials(first.sweep_id), store.events(first.sweep_id)
    clock.now += 60

    second = store.claim(before, "other")

    assert second is not None
    after = store.sweep(first.sweep_id)
    assert second.token == first.token + 1
    assert (after.lease_owner, after.started_at, after.state) == ("other", before.started_at, before.state)
    assert (store.trials(first.sweep_id), store.events(first.sweep_id)) == (trials, told)


def test_a_stopping_sweep_stays_stopping_when_it_is_taken_over(store: Store) -> None:
    lease = claimed(store)
    second = store.claim(store.control.cancel(lease.sweep_id), "other")
    assert second is not None
    second.renew()
    assert store.sweep(second.sweep_id).state is SweepState.STOPPING


def test_a_released_sweep_has_no_owner_and_can_be_claimed(store: Store) -> None:
    lease = claimed(store)
    lease.release()
    record = store.sweep(lease.sweep_id)
    assert (record.lease_owner, record.state) == (None, SweepState.RUNNING)
    assert store.claim(record, "other") is not None


# --- fencing ---


def _claimed_by_another(store: Store, lease: Lease) -> None:
    assert store.claim(store.sweep(lease.sweep_id), "other") is not None


def _ended(_: Store, lease: Lease) -> None:
    lease.finish_sweep(SweepState.SUCCEEDED)


def _cancelled_by_another(store: Store, lease: Lease) -> None:
    holder = store.claim(store.control.cancel(lease.sweep_id), "other")
    assert holder is not None
    holder.finish_sweep(SweepState.CANCELLED)


def _let_go(_: Store, lease: Lease) -> None:
    lease.release()


def _never_given(_: Store, lease: Lease) -> None:
    lease.token += 1  # a token from the future is no better than one from the past


def test_every_public_write_of_a_lease_is_fenced() -> None:
    public = {name for name, _ in inspect.getmembers(Lease, inspect.isfunction) if not name.startswith("_")}
    tested = {name.split()[0] for name in LEASE_WRITES}
    assert tested - {"record and end"} == public


@pytest.mark.parametrize("lose", [_claimed_by_another, _ended, _cancelled_by_another, _let_go, _never_given])
def test_a_stale_token_writes_nothing(store: Store, lose: Callable[[Store, Lease], None]) -> None:
    lease = in_the_middle(store)
    lose(store, lease)
    before = picture(store)

    for name, write in LEASE_WRITES.items():
        with pytest.raises(LeaseLost, match=lease.sweep_id):
            write(lease)
        assert picture(store) == before, name


def test_a_lease_writes_its_own_sweep_only(store: Store) -> None:
    there = in_the_middle(store).sweep_id

    def seen() -> object:
        trials, measurements = store.trials(there), store.measurements(there)
        return store.sweep(there), trials, measurements, store.events(there), store.attempts(there, 0)

    before = seen()
    for name, write in LEASE_WRITES.items():
        write(in_the_middle(store))
        assert seen() == before, name


def test_a_holder_that_writes_on_is_cut_off_at_the_claim(store: Store, other_store: Store) -> None:
    lease = claimed(store)
    lease.start_attempt(0, 1, PARAMETERS, is_baseline=False)

    def write_on() -> int:
        for epoch in range(1, 10_000):
            try:
                lease.record(0, 1, measurement(epoch))
            except LeaseLost:
                return epoch - 1
            sleep(0.002)
        raise AssertionError("never cut off")

    def take_over() -> object:
        while other_store.claim(other_store.sweep(lease.sweep_id), "other") is None:
            pass  # a sign of life came between the read and the claim
        return picture(other_store)

    num_recorded, at_the_claim = together([write_on, take_over])

    assert picture(store) == at_the_claim
    assert len(store.measurements(lease.sweep_id)) == num_recorded
