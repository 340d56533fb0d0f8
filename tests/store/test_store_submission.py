"""A sweep is accepted once: keys, replays, and what cancelling does to it."""

import pytest
from situations import Clock, claimed, events_after, picture, spec, together

from care_sweep.errors import Conflict, IdempotencyKeyReused, NotFound
from care_sweep.spec import SweepState
from care_sweep.store import Store

DAY_SECONDS = 24 * 3600


def test_a_submitted_sweep_waits_and_reads_back_whole(store: Store, other_store: Store, clock: Clock) -> None:
    record, is_new = store.submit(spec("a näme 🎯"))

    assert is_new
    assert other_store.sweep(record.id) == record
    assert (record.state, record.name, record.spec) == (SweepState.QUEUED, "a näme 🎯", spec("a näme 🎯"))
    assert (record.created_at, record.started_at, record.finished_at) == (clock.now, None, None)
    assert (record.lease_owner, record.fencing_token, record.trial_counts) == (None, 0, {})
    assert events_after(store, record.id, []) == [("sweep", None, "QUEUED")]


def test_without_a_key_every_submission_is_a_sweep(store: Store) -> None:
    assert len({store.submit(spec())[0].id for _ in range(3)}) == 3


def test_the_same_key_and_body_answer_the_first_sweep_as_it_is_now(store: Store, other_store: Store) -> None:
    first, _ = store.submit(spec(), idempotency_key="k", body_sha256="a")
    cancelled = store.control.cancel(first.id)
    before = picture(store)

    assert other_store.submit(spec(), idempotency_key="k", body_sha256="a") == (cancelled, False)
    assert picture(store) == before


def test_other_keys_with_the_same_body_are_other_sweeps(store: Store) -> None:
    ids = {store.submit(spec(), idempotency_key=key, body_sha256="a")[0].id for key in ("k", "K", "k ", "")}
    assert len(ids) == 4


def test_another_body_under_a_used_key_is_refused_and_writes_nothing(store: Store, clock: Clock) -> None:
    store.submit(spec(), idempotency_key="long ago", body_sha256="a")
    clock.now += DAY_SECONDS
    store.submit(spec(), idempotency_key="k", body_sha256="a")
    clock.now += 1
    before = picture(store)

    with pytest.raises(IdempotencyKeyReused, match="'k' was used with another body"):
        store.submit(spec("other"), idempotency_key="k", body_sha256="b")
    assert picture(store) == before


@pytest.mark.parametrize("body", ["a", "b"])
def test_a_key_is_kept_for_24_hours_and_then_free(store: Store, clock: Clock, body: str) -> None:
    first, _ = store.submit(spec(), idempotency_key="k", body_sha256="a")
    clock.now += DAY_SECONDS
    assert store.submit(spec(), idempotency_key="k", body_sha256="a") == (first, False)

    clock.now += 1
    second, is_new = store.submit(spec(), idempotency_key="k", body_sha256=body)
    assert is_new
    assert second.id != first.id
    assert store.sweep(first.id) == first
    assert [row.sweep_id for row in picture(store)["idempotency_keys"]] == [second.id]


def test_a_clock_that_went_back_frees_no_key(store: Store, clock: Clock) -> None:
    first, _ = store.submit(spec(), idempotency_key="k", body_sha256="a")
    clock.now -= 3600
    assert store.submit(spec(), idempotency_key="k", body_sha256="a") == (first, False)


def test_a_hundred_equal_submissions_at_once_are_one_sweep(store: Store) -> None:
    def submit() -> tuple[str, bool]:
        record, is_new = store.submit(spec(), idempotency_key="k", body_sha256="a")
        return record.id, is_new

    answers = together([submit] * 100)

    assert len({sweep_id for sweep_id, _ in answers}) == 1
    assert sum(is_new for _, is_new in answers) == 1
    assert len(picture(store)["sweeps"]) == len(picture(store)["events"]) == 1


def test_submissions_at_once_lose_none(store: Store) -> None:
    def submit(number: int) -> str:
        return store.submit(spec(), idempotency_key=f"k{number}", body_sha256="a")[0].id

    ids = together([lambda n=n: submit(n) for n in range(16)])  # type: ignore[misc]

    assert len(set(ids)) == 16
    assert {record.id for record in store.sweeps().items} == set(ids)


# --- cancel ---


def test_cancelling_a_waiting_sweep_ends_it(store: Store, clock: Clock) -> None:
    queued, _ = store.submit(spec())
    before = store.events(queued.id)
    clock.now += 5

    record = store.control.cancel(queued.id)

    assert (record.state, record.reason, record.finished_at) == (SweepState.CANCELLED, "cancelled", clock.now)
    assert events_after(store, queued.id, before) == [("sweep", None, "CANCELLED")]
    assert store.claim(queued, "runner") is None
    assert store.claim(record, "runner") is None


def test_cancelling_a_running_sweep_asks_its_holder(store: Store) -> None:
    lease = claimed(store)
    before = store.events(lease.sweep_id)

    record = store.control.cancel(lease.sweep_id)

    assert (record.state, record.reason, record.finished_at) == (SweepState.STOPPING, "cancelled", None)
    assert events_after(store, lease.sweep_id, before) == [("sweep", None, "STOPPING")]
    lease.renew()
    assert store.sweep(lease.sweep_id).state is SweepState.STOPPING
    lease.finish_sweep(SweepState.CANCELLED, reason="cancelled")
    assert store.sweep(lease.sweep_id).state is SweepState.CANCELLED


def test_cancelling_again_changes_nothing(store: Store) -> None:
    lease = claimed(store)
    record = store.control.cancel(lease.sweep_id)
    before = picture(store)
    assert store.control.cancel(lease.sweep_id) == record
    assert picture(store) == before


@pytest.mark.parametrize("end", [state for state in SweepState if state.is_terminal])
def test_an_ended_sweep_cannot_be_cancelled(store: Store, end: SweepState) -> None:
    lease = claimed(store)
    lease.finish_sweep(end)
    before = picture(store)
    with pytest.raises(Conflict, match=f"already ended as {end}"):
        store.control.cancel(lease.sweep_id)
    assert picture(store) == before


def test_what_is_not_there_is_not_found(store: Store) -> None:
    lease = claimed(store)
    for look in (
        store.sweep,
        store.control.cancel,
        store.trials,
        store.measurements,
        store.events,
        lambda sweep_id: store.trial(sweep_id, 0),
    ):
        with pytest.raises(NotFound, match="no sweep 'absent'"):
            look("absent")
    with pytest.raises(NotFound, match="no trial 7"):
        store.trial(lease.sweep_id, 7)
