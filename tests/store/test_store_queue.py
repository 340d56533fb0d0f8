"""What users enqueue, on each database: in order, once, told while it waits, no more than has room."""

from dataclasses import replace

import pytest
from situations import PARAMETERS, claimed, spec

from care_sweep.errors import Conflict, IdempotencyKeyReused, RequestUnderWay
from care_sweep.spec import SweepState
from care_sweep.store import Store, SweepRecord, control


def test_points_are_taken_in_order_and_once(store: Store) -> None:
    lease = claimed(store)
    points = [{"temperature": 0.1 * n} for n in (1, 2)]
    for point in points:
        store.control.enqueue(lease.sweep_id, point)
    wishes = store.wishes(lease.sweep_id, seen=0)
    assert wishes is not None
    assert list(wishes.enqueued.values()) == points
    first, second = wishes.enqueued

    lease.start_attempt(0, 1, points[0], is_baseline=False, enqueued_as=first)
    left = store.wishes(lease.sweep_id, seen=0)
    assert left is not None
    assert list(left.enqueued) == [second]
    with pytest.raises(AssertionError, match="is taken"):
        lease.start_attempt(1, 1, points[0], is_baseline=False, enqueued_as=first)


def test_a_sweep_tells_what_waits(store: Store) -> None:
    lease = claimed(store)
    for value in (0.1, 0.2):
        told = store.control.enqueue(lease.sweep_id, {"temperature": value})
    assert list(told.enqueued.values()) == [{"temperature": 0.1}, {"temperature": 0.2}]
    lease.start_attempt(0, 1, {"temperature": 0.1}, is_baseline=False, enqueued_as=next(iter(told.enqueued)))
    sweep, (listed,) = store.sweep(lease.sweep_id), store.sweeps().items
    assert list((sweep.enqueued or {}).values()) == [{"temperature": 0.2}]
    assert listed == replace(sweep, enqueued=None), "a list reads no queues"


def test_a_key_enqueues_once(store: Store) -> None:
    """Also when the sweep has ended since, for what was acknowledged is answered alike."""
    lease = claimed(store)

    def enqueue(request: str) -> SweepRecord:
        kept = {"idempotency_key": "a-key", "request_sha256": request}
        return store.control.enqueue(lease.sweep_id, PARAMETERS, **kept)

    assert [len(enqueue("one").enqueued) for _ in range(2)] == [1, 1]
    with pytest.raises(IdempotencyKeyReused, match="'a-key' was used with another body"):
        enqueue("two")
    with pytest.raises(IdempotencyKeyReused):
        store.submit(spec(), idempotency_key="a-key", body_sha256="a sweep")
    lease.finish_sweep(SweepState.SUCCEEDED)
    assert len(enqueue("one").enqueued) == 1


def test_a_key_that_comes_twice_at_once_is_under_way(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither twin has found the other's key; the second one's collides."""
    lease = claimed(store)
    monkeypatch.setattr(control, "accepted_as", lambda *_: None)
    store.control.enqueue(lease.sweep_id, PARAMETERS, idempotency_key="a-key", request_sha256="one")
    with pytest.raises(RequestUnderWay, match="'a-key' may still be under way"):
        store.control.enqueue(lease.sweep_id, PARAMETERS, idempotency_key="a-key", request_sha256="one")
    assert len(store.sweep(lease.sweep_id).enqueued) == 1


def test_the_queue_has_no_more_room_than_the_sweep(store: Store) -> None:
    lease = claimed(store)
    for _ in range(spec().num_trials):
        store.control.enqueue(lease.sweep_id, PARAMETERS)
    with pytest.raises(Conflict, match="all 4 trials of the sweep are taken: extend num_trials first"):
        store.control.enqueue(lease.sweep_id, PARAMETERS)
    store.control.extend(lease.sweep_id, lambda old: old.model_copy(update={"num_trials": 5}))
    store.control.enqueue(lease.sweep_id, PARAMETERS)
