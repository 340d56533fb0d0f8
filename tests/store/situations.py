"""What the tests of the store start from and look at: sweeps, leases, all writes, the whole database."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any, TypeVar

from sqlalchemy import Engine, event, select

from care_sweep.spec import (
    CheckpointReference,
    Measurement,
    Place,
    SearchSpace,
    SweepSpec,
    SweepState,
    TrialState,
)
from care_sweep.store import EventRecord, Lease, Store
from care_sweep.store.database import reading
from care_sweep.store.schema import metadata

_T = TypeVar("_T")

PARAMETERS = {"temperature": 0.1 + 0.2, "encoder": "resnet18", "num_splits": 16}
PLACE = Place(actor_id="a1", node_id="b2", log_name="worker-c3.out", gpus=("0", "1"))
CHECKPOINT = CheckpointReference(name="attempt-1/epoch-2", sha256="0a" * 32, size_bytes=123_456)


class Clock:
    """Seconds since 1970 that move only when a test moves them."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def spec(name: str = "first-look") -> SweepSpec:
    temperature = {"type": "float", "low": 0.05, "high": 1.0}
    space = SearchSpace.model_validate({"parameters": {"temperature": temperature}})
    return SweepSpec(name=name, space=space, num_trials=4)


def measurement(
    epoch: int, accuracy: float = 0.5, checkpoint: CheckpointReference | None = None
) -> Measurement:
    metrics = {"validation_knn_accuracy": accuracy, "loss": 1 / 3}
    return Measurement(epoch=epoch, metrics=metrics, seconds=1.5, checkpoint=checkpoint)


def claimed(store: Store, owner: str = "runner") -> Lease:
    """The lease of a new sweep."""
    record, _ = store.submit(spec())
    lease = store.claim(record, owner)
    assert lease is not None
    return lease


def in_the_middle(store: Store) -> Lease:
    """A lease of a sweep whose trial 0 has run for an epoch, 1 waits, 2 is COMPLETE and 3 FAILED."""
    lease = claimed(store)
    lease.start_attempt(0, 1, PARAMETERS, is_baseline=True)
    lease.record(0, 1, measurement(1))
    lease.start_attempt(1, 1, PARAMETERS, is_baseline=False)
    lease.interrupt_trial(1, reason="worker lost")
    lease.start_attempt(2, 1, PARAMETERS, is_baseline=False)
    lease.record(2, 1, measurement(1), state=TrialState.COMPLETE, value=0.5)
    lease.start_attempt(3, 1, PARAMETERS, is_baseline=False)
    lease.finish_trial(3, TrialState.FAILED, reason="exception")
    return lease


ENDS = tuple(state for state in TrialState if state.is_terminal)

LEASE_WRITES: Mapping[str, Callable[[Lease], object]] = {
    "renew": lambda lease: lease.renew(),
    "explain": lambda lease: lease.explain("there is no room"),
    "ready": lambda lease: lease.ready(True),
    "note_gpus": lambda lease: lease.note_gpus(0.25, "four fit"),
    "start_attempt": lambda lease: lease.start_attempt(9, 1, PARAMETERS, is_baseline=False),
    "start_attempt again": lambda lease: lease.start_attempt(1, 2, PARAMETERS, is_baseline=False),
    "place_attempt": lambda lease: lease.place_attempt(0, 1, PLACE),
    "record": lambda lease: lease.record(0, 1, measurement(2)),
    "record and end": lambda lease: lease.record(
        0, 1, measurement(2, checkpoint=CHECKPOINT), state=TrialState.COMPLETE, value=0.5
    ),
    "finish_trial": lambda lease: lease.finish_trial(0, TrialState.FAILED, reason="diverged", message="loss"),
    "interrupt_trial": lambda lease: lease.interrupt_trial(0, reason="worker lost"),
    "forget_checkpoints": lambda lease: lease.forget_checkpoints([2]),
    "finish_sweep": lambda lease: lease.finish_sweep(SweepState.SUCCEEDED),
    "release": lambda lease: lease.release(),
    "give_way": lambda lease: lease.give_way(),
}
"""Each way of writing under a lease, allowed in the situation `in_the_middle`."""


def picture(store: Store) -> Mapping[str, Sequence[Any]]:
    """Every row of every table."""
    with reading(store.engine) as connection:
        return {
            table.name: connection.execute(select(table).order_by(*table.primary_key)).all()
            for table in metadata.sorted_tables
        }


def events_after(store: Store, sweep_id: str, before: Sequence[EventRecord]) -> list[tuple[str, Any, Any]]:
    """What was told since: kind, trial number and state (or epoch)."""
    last = before[-1].sequence if before else 0
    new = store.events(sweep_id, after=last)
    return [(e.kind, e.data.get("number"), e.data.get("state", e.data.get("epoch"))) for e in new]


def together(tasks: Sequence[Callable[[], _T]]) -> list[_T]:
    """The answers of tasks that start at once, a thread each."""
    barrier = Barrier(len(tasks))

    def run(task: Callable[[], _T]) -> _T:
        barrier.wait(timeout=30)
        return task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        return list(pool.map(run, tasks))


@contextmanager
def struck_after(engine: Engine, num_statements: int, strike: Callable[[], None]) -> Iterator[None]:
    """Strike once this many statements have run; the commit counts as one that is about to."""
    seen = 0

    def count(*_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen > num_statements:
            strike()

    for moment in ("after_cursor_execute", "commit"):
        event.listen(engine, moment, count)
    try:
        yield
    finally:
        for moment in ("after_cursor_execute", "commit"):
            event.remove(engine, moment, count)
