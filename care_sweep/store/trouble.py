"""What does a database's error mean? Trouble that may pass, in words, apart from what stays wrong."""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from care_sweep.errors import DatabaseBusy, DatabaseDamaged, DatabaseError, DatabaseFull, DatabaseUnavailable

__all__ = ["in_words", "told"]

_AWAY = DatabaseUnavailable, "the database does not answer"
_BUSY = DatabaseBusy, "the database is busy: somebody else holds what a write needs"
_FULL = DatabaseFull, "the database is full: free space where it lies"
_READ_ONLY = DatabaseUnavailable, "the database is read-only: have it take writes again"

_DAMAGED = DatabaseDamaged, "the database is damaged, or a file of something else: restore it from a copy"

_Meaning = tuple[type[DatabaseError], str]

_SQLITE: Mapping[int, _Meaning] = {
    sqlite3.SQLITE_BUSY: _BUSY,
    sqlite3.SQLITE_LOCKED: _BUSY,
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_READONLY: _READ_ONLY,
    sqlite3.SQLITE_CANTOPEN: _AWAY,
    sqlite3.SQLITE_IOERR: _AWAY,
    sqlite3.SQLITE_NOMEM: _AWAY,
    sqlite3.SQLITE_PROTOCOL: _BUSY,
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
}
"""By the primary result code; every other one is a mistake of ours."""

_POSTGRESQL: Mapping[str, _Meaning] = {
    "53100": _FULL,  # disk_full
    "55P03": _BUSY,  # lock_not_available
    "40P01": _BUSY,  # deadlock_detected
    "25006": _READ_ONLY,  # read_only_sql_transaction, as on a standby
    "XX001": _DAMAGED,  # data_corrupted
    "XX002": _DAMAGED,  # index_corrupted
    "25P03": _AWAY,  # idle_in_transaction_session_timeout: this process slept
}
"""By SQLSTATE; another OperationalError is of the connection or the server."""


@contextmanager
def told() -> Iterator[None]:
    """Raise what may pass as DatabaseUnavailable or a kind of it, damage as DatabaseDamaged.

    All else goes as it came.
    """
    try:
        yield
    except (DBAPIError, PoolTimeout) as error:
        meaning = _meaning(error)
        if meaning is None:
            raise
        kind, words = meaning
        raise kind(words) from error


def in_words(error: Exception) -> str:
    """What the database or the system said, without the statement and the links of SQLAlchemy."""
    cause = error.__cause__ if isinstance(error, DatabaseUnavailable | DatabaseDamaged) else error
    return str(getattr(cause, "orig", None) or cause or error)


def _meaning(error: SQLAlchemyError) -> _Meaning | None:
    said = getattr(error, "orig", None)
    if isinstance(said, sqlite3.Error):
        return _SQLITE.get(getattr(said, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF)
    known = _POSTGRESQL.get(getattr(said, "sqlstate", None) or "")
    if known is None and isinstance(error, OperationalError | InterfaceError | PoolTimeout):
        return _AWAY
    return known
