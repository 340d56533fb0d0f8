"""A database that is full, busy, silent or away, and commits whose answer is lost: told and outlasted."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest
from postgresql_server import PostgreSQLServer
from situations import (
    LEASE_WRITES,
    PARAMETERS,
    Clock,
    claimed,
    in_the_middle,
    measurement,
    picture,
    spec,
)
from sqlalchemy import event, text

from care_sweep.errors import (
    DatabaseBusy,
    DatabaseFull,
    DatabaseUnavailable,
    IdempotencyKeyReused,
    LeaseLost,
    RequestUnderWay,
)
from care_sweep.store import Lease, Store, open_database
from care_sweep.store import postgresql as postgresql_module
from care_sweep.store.database import writing

PATIENCE_SECONDS = 1.0


@pytest.fixture
def impatient(database_url: str, clock: Clock) -> Iterator[Store]:
    """The same database, opened by somebody who waits a second."""
    engine = open_database(database_url, answer_seconds=PATIENCE_SECONDS)
    yield Store(engine, clock)
    engine.dispose()


def _persistent(lease: Lease, tries: list[DatabaseUnavailable]) -> Lease:
    """The same lease in the hands of one who notes what goes wrong and tries again."""

    def persist(write: Callable[[], None]) -> None:
        while True:
            try:
                return write()
            except DatabaseUnavailable as error:
                tries.append(error)
                assert len(tries) < 5

    return Lease(lease._engine, lease.sweep_id, lease.token, lease._clock, persist=persist)


@contextmanager
def _first_commit_breaks(store: Store, *, is_made: bool) -> Iterator[None]:
    """The connection breaks at the next commit, before or after the database has made it."""
    dialect = store.engine.dialect
    commit, is_broken = dialect.do_commit, False

    def do_commit(connection: Any) -> None:
        nonlocal is_broken
        if is_broken:
            return commit(connection)
        is_broken = True
        if is_made:
            commit(connection)
        error: Exception = psycopg.OperationalError("the connection is lost")
        if dialect.name == "sqlite":
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC  # type: ignore[attr-defined]
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialect, "do_commit", do_commit)
        yield
    assert is_broken


# --- commits whose answer is lost ---


def _picture_of_one_write(store: Store, name: str) -> Any:
    """What a write changes where nothing goes wrong, but for whose it is."""
    lease = in_the_middle(store)
    LEASE_WRITES[name](lease)
    return _anonymous(store, lease.sweep_id)


def _anonymous(store: Store, sweep_id: str) -> Any:
    events = [(e.kind, e.data) for e in store.events(sweep_id)]
    trials = [(t.number, t.state, t.attempt, t.last_epoch, t.value) for t in store.trials(sweep_id).items]
    sweep = store.sweep(sweep_id)
    return events, trials, sweep.lease_counter, sweep.state, sweep.lease_owner, sweep.message


@pytest.mark.parametrize("is_made", [True, False])
@pytest.mark.parametrize("name", [name for name in LEASE_WRITES if name != "renew"])
def test_a_write_is_made_once_whether_or_not_its_commit_was(store: Store, name: str, is_made: bool) -> None:
    expected = _picture_of_one_write(store, name)
    tries: list[DatabaseUnavailable] = []
    lease = _persistent(in_the_middle(store), tries)
    with _first_commit_breaks(store, is_made=is_made):
        LEASE_WRITES[name](lease)
    assert len(tries) == 1
    assert _anonymous(store, lease.sweep_id) == expected


def test_a_write_after_one_without_an_answer_is_made(store: Store) -> None:
    """Whoever gives up on a write must not have the next one taken for it."""
    held = in_the_middle(store)
    lease = Lease(store.engine, held.sweep_id, held.token, store.clock)
    with _first_commit_breaks(store, is_made=True), pytest.raises(DatabaseUnavailable):
        lease.explain("there is no room")
    lease.record(0, 1, measurement(2))
    assert store.trial(lease.sweep_id, 0).last_epoch == 2


def test_a_lease_that_was_lost_meanwhile_ends_the_trying(store: Store) -> None:
    def persist(write: Callable[[], None]) -> None:
        try:
            write()
        except DatabaseUnavailable:
            assert store.claim(store.sweep(held.sweep_id), "other") is not None
            write()

    held = in_the_middle(store)
    lease = Lease(store.engine, held.sweep_id, held.token, store.clock, persist=persist)
    with _first_commit_breaks(store, is_made=False), pytest.raises(LeaseLost):
        lease.record(0, 1, measurement(2))
    assert store.trial(lease.sweep_id, 0).last_epoch == 1


def test_a_renewal_does_not_wait_for_a_write_that_is_tried(store: Store) -> None:
    held = in_the_middle(store)
    begun, done = threading.Event(), threading.Event()

    def persist(write: Callable[[], None]) -> None:
        begun.set()
        done.wait(30)
        write()

    lease = Lease(store.engine, held.sweep_id, held.token, store.clock, persist=persist)
    writer = threading.Thread(target=lease.explain, args=["there is no room"])
    writer.start()
    begun.wait(30)
    with pytest.raises(DatabaseBusy):
        lease.renew()
    done.set()
    writer.join()
    lease.renew()
    assert store.sweep(lease.sweep_id).message == "there is no room"


# --- no room ---


@contextmanager
def _full(store: Store) -> Iterator[None]:
    """Nothing that needs room can be written, for the length of a `with`."""
    if store.engine.dialect.name == "sqlite":
        with _set(store, "PRAGMA max_page_count=1", "PRAGMA max_page_count=1000000"):
            yield
        return
    with _set(
        store,
        "CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$;"
        " CREATE TRIGGER no_room BEFORE INSERT ON events EXECUTE FUNCTION no_room()",
        "DROP FUNCTION no_room CASCADE",
    ):
        yield


@contextmanager
def _set(store: Store, before: str, after: str) -> Iterator[None]:
    """Run SQL on the one connection that the store uses while nobody else does."""
    for number, statement in enumerate((before, after)):
        connection = store.engine.raw_connection()
        connection.cursor().execute(statement)
        connection.commit()
        connection.close()
        if number == 0:
            yield


def test_a_full_disk_loses_nothing_and_is_outlasted(store: Store) -> None:
    lease = claimed(store)
    lease.start_attempt(0, 1, PARAMETERS, is_baseline=False)
    bulky = spec().model_copy(update={"space": spec().space.model_copy(update={"description": "x" * 2000})})
    accepted = [store.submit(bulky)[0].id]
    with _full(store), pytest.raises(DatabaseFull, match="free space"):
        while True:
            accepted.append(store.submit(bulky, idempotency_key=f"k{len(accepted)}")[0].id)
    before = picture(store)
    with _full(store), pytest.raises(DatabaseFull):
        for epoch in range(1, 10_000):
            lease.record(0, 1, measurement(epoch))
            before = picture(store)
    assert picture(store) == before
    assert {record.id for record in store.sweeps(page_size=1000).items} >= set(accepted)
    assert store.submit(bulky, idempotency_key=f"k{len(accepted)}")[1]
    lease.record(0, 1, measurement(store.trial(lease.sweep_id, 0).last_epoch + 1))


def test_a_database_that_takes_no_writes_is_told(store: Store) -> None:
    query_only = "PRAGMA query_only=ON", "PRAGMA query_only=OFF"
    if store.engine.dialect.name == "postgresql":
        query_only = "SET default_transaction_read_only = on", "SET default_transaction_read_only = off"
    with _set(store, *query_only):
        with pytest.raises(DatabaseUnavailable, match="read-only"):
            store.submit(spec())
        store.sweeps()
    store.submit(spec())


# --- somebody else holds it ---


@contextmanager
def _in_flight(store: Store) -> Iterator[None]:
    """A submission with the key "k" that has done all but commit, for the length of a `with`."""
    reached, may_commit = threading.Event(), threading.Event()

    def hold(_: Any) -> None:
        reached.set()
        may_commit.wait(30)

    event.listen(store.engine, "commit", hold)
    thread = threading.Thread(
        target=store.submit, args=[spec()], kwargs={"idempotency_key": "k", "body_sha256": "a"}
    )
    thread.start()
    try:
        assert reached.wait(30)
        yield
    finally:
        may_commit.set()
        thread.join()
        event.remove(store.engine, "commit", hold)


def test_an_equal_in_flight_is_waited_for_and_then_told(store: Store, impatient: Store) -> None:
    with _in_flight(store):
        began = time.monotonic()
        with pytest.raises(RequestUnderWay, match="'k' may still be under way"):
            impatient.submit(spec(), idempotency_key="k", body_sha256="a")
        assert PATIENCE_SECONDS * 0.9 < time.monotonic() - began < 5
        assert impatient.submitted("k", "a") is None, "nobody waits to learn that there is no answer yet"
    (only,) = store.sweeps().items
    assert impatient.submit(spec(), idempotency_key="k", body_sha256="a") == (store.sweep(only.id), False)
    with pytest.raises(IdempotencyKeyReused):
        impatient.submit(spec(), idempotency_key="k", body_sha256="b")


def test_an_equal_in_flight_that_ends_in_time_answers_both(store: Store, impatient: Store) -> None:
    answers: list[Any] = []
    second = threading.Thread(
        target=lambda: answers.append(impatient.submit(spec(), idempotency_key="k", body_sha256="a"))
    )
    with _in_flight(store):
        second.start()
        time.sleep(PATIENCE_SECONDS / 4)
    second.join()
    (only,) = store.sweeps().items
    assert answers == [(store.sweep(only.id), False)]


def test_what_waits_for_a_lock_is_busy(store: Store, impatient: Store) -> None:
    lease = claimed(store)
    with ExitStack() as stack:
        connection = stack.enter_context(writing(store.engine))
        connection.execute(text("UPDATE sweeps SET message = 'held'"))
        with pytest.raises(DatabaseBusy):
            impatient.control.pause(lease.sweep_id)
        assert impatient.sweep(lease.sweep_id).message is None, "readers wait for nobody"
    impatient.control.pause(lease.sweep_id)


def test_who_sleeps_in_a_transaction_holds_nothing_for_long(
    postgresql: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that is suspended at its worst moment must not keep its sweep from being taken over."""
    monkeypatch.setattr(postgresql_module, "_IDLE_SECONDS", 1)
    engine = open_database(postgresql())
    store = Store(engine)
    lease = claimed(store)
    with pytest.raises(DatabaseUnavailable), lease._fenced() as connection:
        assert store.claim(store.sweep(lease.sweep_id), "other") is not None
        connection.execute(text("UPDATE sweeps SET message = 'late'"))
    assert store.sweep(lease.sweep_id).message is None
    engine.dispose()


# --- the server is not there ---


@pytest.mark.slow
def test_a_server_that_was_away_or_silent_is_used_again(postgresql_server: PostgreSQLServer) -> None:
    engine = open_database(postgresql_server.create(), answer_seconds=4.0)
    store = Store(engine)
    lease = claimed(store)
    postgresql_server.stop()
    _is_refused_within_five_seconds(store.ping)
    postgresql_server.start()
    store.ping()
    with postgresql_server.silent():
        _is_refused_within_five_seconds(store.ping)
        _is_refused_within_five_seconds(store.cluster)  # those who come next need not find out again
        time.sleep(1.5)
        _is_refused_within_five_seconds(lease.renew)
    time.sleep(1.5)
    lease.renew()
    engine.dispose()


def _is_refused_within_five_seconds(ask: Callable[[], object]) -> None:
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailable, match="does not answer"):
        ask()
    assert time.monotonic() - began < 5
