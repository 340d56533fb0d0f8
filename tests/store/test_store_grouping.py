"""Writes that come together share a commit, and neither a fault nor an answer: each hears of its own."""

import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, insert, select
from sqlalchemy.exc import IntegrityError, OperationalError

from care_sweep.store import open_database
from care_sweep.store.database import reading
from care_sweep.store.grouping import GroupedWrites
from care_sweep.store.schema import clusters

NUM_WRITES = 8


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = open_database(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def sqlite(empty_sqlite: Path, tmp_path: Path) -> Iterator[Engine]:
    engine = open_database(f"sqlite:///{shutil.copy(empty_sqlite, tmp_path / 'store.db')}")
    yield engine
    engine.dispose()


def _insert(name: str) -> Callable[[Connection], str]:
    def work(connection: Connection) -> str:
        connection.execute(insert(clusters), {"runner": name, "report": {}, "reported_at": 0.0})
        return name.upper()

    return work


def _insert_and_fail(connection: Connection) -> str:
    _insert("gone")(connection)
    raise ValueError("a mistake")


def _stored(engine: Engine) -> set[str]:
    with reading(engine) as connection:
        return set(connection.execute(select(clusters.c.runner)).scalars())


class Held:
    """A group that cannot commit before `release`: meanwhile others come and wait for the next one."""

    def __init__(self, engine: Engine) -> None:
        self.writes = GroupedWrites(engine)
        self.release = Event()
        self.num_commits = 0
        self._pool = ThreadPoolExecutor(NUM_WRITES + 1)
        event.listen(engine, "commit", self._count)
        began = Event()

        def hold(_: Connection) -> None:
            began.set()
            assert self.release.wait(30)

        self.first = self._pool.submit(self.writes.write, hold)
        assert began.wait(30)

    def _count(self, _: Connection) -> None:
        self.num_commits += 1

    def add(self, *works: Callable[[Connection], Any]) -> list["Future[Any]"]:
        """Have each work wait, in this order."""
        futures = []
        for number, work in enumerate(works, start=1):
            futures.append(self._pool.submit(self.writes.write, work))
            while len(self.writes._waiting) < number:
                time.sleep(0.001)
        return futures


def test_a_write_is_answered_and_there(engine: Engine) -> None:
    assert GroupedWrites(engine).write(_insert("one")) == "ONE"
    assert _stored(engine) == {"one"}


def test_what_raises_leaves_nothing_and_the_next_write_is_well(engine: Engine) -> None:
    writes = GroupedWrites(engine)
    with pytest.raises(ValueError, match="a mistake"):
        writes.write(_insert_and_fail)
    assert writes.write(_insert("next")) == "NEXT"
    assert _stored(engine) == {"next"}


def test_what_comes_during_a_commit_shares_the_next_one(sqlite: Engine) -> None:
    held = Held(sqlite)
    names = [f"n{number}" for number in range(NUM_WRITES)]
    futures = held.add(*map(_insert, names))
    held.release.set()
    assert [future.result(30) for future in futures] == [name.upper() for name in names]
    assert held.num_commits == 2
    assert _stored(sqlite) == set(names)


def test_the_mistake_of_one_is_not_its_neighbours(sqlite: Engine) -> None:
    held = Held(sqlite)
    good, bad, twice, last = held.add(_insert("good"), _insert_and_fail, _insert("good"), _insert("last"))
    held.release.set()
    assert (good.result(30), last.result(30)) == ("GOOD", "LAST")
    with pytest.raises(ValueError, match="a mistake"):
        bad.result(30)
    with pytest.raises(IntegrityError):
        twice.result(30)
    assert held.num_commits == 2
    assert _stored(sqlite) == {"good", "last"}


def test_nobody_is_answered_before_the_commit(sqlite: Engine) -> None:
    held = Held(sqlite)
    futures = held.add(_insert("one"), _insert("two"))
    num_answered = []

    def look(_: Connection) -> None:
        done, _not_done = wait(futures, timeout=0.3, return_when=FIRST_COMPLETED)
        num_answered.append(len(done))

    event.listen(sqlite, "commit", look)
    held.release.set()
    assert [future.result(30) for future in futures] == ["ONE", "TWO"]
    assert num_answered == [0, 0]  # at the commit of the first, and at theirs


def test_a_commit_that_fails_is_heard_of_by_all_in_it_and_all_who_wait(sqlite: Engine) -> None:
    """Who waits has waited as long as the one who met the trouble; the next may be luckier."""
    held = Held(sqlite)
    futures = held.add(_insert("one"), _insert("two"))

    def fail(_: Connection) -> None:
        event.remove(sqlite, "commit", fail)
        raise OperationalError("COMMIT", None, sqlite3.OperationalError("disk is full"))

    event.listen(sqlite, "commit", fail)
    held.release.set()
    for future in [held.first, *futures]:
        with pytest.raises(OperationalError, match="disk is full"):
            future.result(30)
    assert held.writes.write(_insert("after")) == "AFTER"
    assert _stored(sqlite) == {"after"}


def test_trouble_of_the_database_in_one_work_is_everybodys(sqlite: Engine) -> None:
    """SQLite may have ended the transaction with it, and with it what others wrote before."""

    def meet_trouble(connection: Connection) -> None:
        connection.exec_driver_sql("ROLLBACK")
        raise OperationalError("INSERT", None, sqlite3.OperationalError("disk is full"))

    held = Held(sqlite)
    futures = held.add(_insert("before"), meet_trouble, _insert("behind"))
    held.release.set()
    assert held.first.result(30) is None
    for future in futures:
        with pytest.raises(OperationalError, match="disk is full"):
            future.result(30)
    assert _stored(sqlite) == set()
