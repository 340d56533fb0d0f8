"""How do small writes of one process share SQLite's commits? What comes during one goes into the next."""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Condition
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError

from care_sweep.store.database import writing

__all__ = ["GroupedWrites"]

_T = TypeVar("_T")


@dataclass
class _Write:
    work: Callable[[Connection], Any]
    is_done: bool = False
    answer: Any = None
    error: BaseException | None = None


class GroupedWrites:
    """Transactions that may be of several: a commit is one sync of the disk, however much is in it.

    No thread stands behind it: who comes while nobody commits does so for all who wait, and the others sleep.
    PostgreSQL has one sync for the commits of several connections by itself; there each write is its own.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._changed = Condition()
        self._waiting: list[_Write] = []
        self._is_committing = False

    def write(self, work: Callable[[Connection], _T]) -> _T:
        """What `work` answers, once what it wrote is durable.

        What it raises undoes its own statements alone. But where the database itself is in trouble, or a
        commit fails, nothing of that transaction is kept, and all who are in it or wait hear why.
        """
        if self._engine.dialect.name != "sqlite":
            with writing(self._engine) as connection:
                return work(connection)
        mine = _Write(work)
        group: list[_Write] = []
        with self._changed:
            self._waiting.append(mine)
            self._changed.wait_for(lambda: mine.is_done or not self._is_committing)
            if not mine.is_done:
                self._is_committing = True
                group, self._waiting = self._waiting, []
        if group:
            self._commit(group)
        if mine.error is not None:
            raise mine.error
        answer: _T = mine.answer
        return answer

    def _commit(self, group: list[_Write]) -> None:
        """Do what each of the group wants in one transaction, and wake all whose answer is known then."""
        trouble: BaseException | None = None
        try:
            with writing(self._engine) as connection:
                for one in group:
                    _attempt(one, connection)
        except BaseException as error:  # noqa: BLE001  (each thread raises it, this one too)
            trouble = error
        with self._changed:
            if trouble is not None:
                group, self._waiting = [*group, *self._waiting], []  # in a database that is away each would
                for one in group:  # wait as long as this one has, after the others
                    one.error = trouble
            for one in group:
                one.is_done = True
            self._is_committing = False
            self._changed.notify_all()


def _attempt(one: _Write, connection: Connection) -> None:
    """Do one's work, or leave no trace of it. Raises what is not one's own trouble."""
    savepoint = connection.begin_nested()
    try:
        one.answer = one.work(connection)
    except OperationalError:
        raise  # of the disk, the file or its lock; SQLite may have ended the transaction
    except Exception as error:  # noqa: BLE001  (its own thread raises it)
        savepoint.rollback()
        one.error = error
    else:
        savepoint.commit()
