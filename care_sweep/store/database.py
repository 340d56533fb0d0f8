"""How the database is opened, made durable and brought to this version's schema."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from care_sweep.errors import DatabaseDamaged, DatabaseError, DatabaseUnavailable
from care_sweep.store import postgresql
from care_sweep.store.schema import SCHEMA_VERSION
from care_sweep.store.trouble import in_words, told

__all__ = [
    "observe_transactions",
    "open_as_it_is",
    "open_database",
    "reading",
    "schema_version",
    "writing",
]

_BUSY_SECONDS = 30.0
_OBSERVER = "care_sweep_observer"
_NUM_CONNECTIONS = 15  # all are kept: to open one anew for each request costs as much as the request


def open_database(url: str, *, answer_seconds: float | None = None) -> Engine:
    """An engine on `url` with the newest schema; an empty database is set up, an older one migrated.

    SQLite runs in WAL with synchronous=FULL: a commit that returned survives a power cut.

    Args:
        answer_seconds: so long is a lock waited for, and a moment longer any word of the server; then it is
            DatabaseUnavailable. By default 30 s for SQLite's one lock, and for ever for a living server.

    Raises:
        DatabaseUnavailable: the database is out of reach or takes no writes at present.
        DatabaseError: the URL is unusable, or what is there is no database of ours, damaged or newer.
    """
    with _opening(url) as address:
        if address.get_backend_name() == "sqlite" and address.database:
            Path(address.database).parent.mkdir(parents=True, exist_ok=True)
        patient = _engine(address)  # a migration takes the time it takes
        try:
            with writing(patient) as connection:
                _upgrade(connection)
        finally:
            patient.dispose()
        return _engine(address, answer_seconds=answer_seconds)


def open_as_it_is(url: str) -> Engine:
    """An engine on a database that is there and has this version's schema, for reading; nothing is changed.

    Raises:
        DatabaseUnavailable: the database is out of reach.
        DatabaseError: the URL is unusable, or there is no database of ours or of another version.
    """
    with _opening(url) as address:
        is_file = address.get_backend_name() == "sqlite"
        if is_file and not Path(address.database or "").is_file():
            raise DatabaseError("there is no such file")
        engine = _engine(address, is_written=False)
        try:
            with reading(engine) as connection:
                _require_schema(schema_version(connection))
        except BaseException:
            engine.dispose()
            raise
        return engine


def observe_transactions(engine: Engine, observe: Callable[[str, float], None]) -> None:
    """Have each transaction's kind (`read` or `write`) and seconds told, whether it succeeds or not.

    They begin with the wait for a connection and end when the commit is durable.
    """
    engine.update_execution_options(**{_OBSERVER: observe})


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction that writes. On SQLite it takes the write lock at once: reading first would fail.

    Raises:
        DatabaseUnavailable: the database does not take it at present.
    """
    with _observed(engine, "write"), told(), engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.execution_options(care_sweep_begin="BEGIN IMMEDIATE")
        with connection.begin():
            yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One consistent snapshot. Raises DatabaseUnavailable where the database does not answer."""
    with _observed(engine, "read"), told(), engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        with connection.begin():
            yield connection


@contextmanager
def _observed(engine: Engine, kind: str) -> Iterator[None]:
    observe = engine.get_execution_options().get(_OBSERVER)
    began = time.perf_counter()
    try:
        yield
    finally:
        if observe is not None:
            observe(kind, time.perf_counter() - began)


@contextmanager
def _opening(url: str) -> Iterator[URL]:
    """The URL in parts; what goes wrong with it is told with the URL's name and a remedy."""
    try:
        with told():
            address = make_url(url)
            if address.get_backend_name() not in ("sqlite", "postgresql"):
                raise ArgumentError("it is neither SQLite nor PostgreSQL")
            if address.drivername == "postgresql":  # SQLAlchemy 2.0 would take another driver for it
                address = address.set(drivername="postgresql+psycopg")
            yield address
    except (DatabaseError, SQLAlchemyError, ImportError, OSError) as error:
        problem = f"the database {_without_password(url)} cannot be opened: {in_words(error)}"
        kind = DatabaseUnavailable if isinstance(error, DatabaseUnavailable) else DatabaseError
        raise kind(problem + _remedy(error)) from error


def _engine(address: URL, *, answer_seconds: float | None = None, is_written: bool = True) -> Engine:
    is_psycopg = address.get_backend_name() == "postgresql" and address.get_driver_name() == "psycopg"
    engine = create_engine(
        address,
        json_serializer=_strict_json,
        poolclass=QueuePool,
        pool_size=_NUM_CONNECTIONS,
        max_overflow=0,
        pool_pre_ping=True,
        pool_timeout=_BUSY_SECONDS if answer_seconds is None else answer_seconds,
        connect_args=postgresql.connect_arguments(address, answer_seconds) if is_psycopg else {},
    )
    if engine.dialect.name == "sqlite":
        _configure_sqlite(engine, answer_seconds or _BUSY_SECONDS, is_durable=is_written)
    elif is_psycopg:
        postgresql.limit_waits(engine, answer_seconds)
    return engine


def _configure_sqlite(engine: Engine, busy_seconds: float, *, is_durable: bool) -> None:
    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own
        connection.execute(f"PRAGMA busy_timeout={int(busy_seconds * 1000)}")
        if is_durable:
            _make_durable(connection)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("care_sweep_begin", "BEGIN"))


def _make_durable(connection: Any) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
    if mode != "wal":
        raise DatabaseError(f"SQLite's journal mode here is {mode!r}, not WAL; use a file on a local disk")
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _upgrade(connection: Connection) -> None:
    """Migrate inside the caller's transaction; a second process waits for it and then finds it done."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(7281992)"))
    found = schema_version(connection)
    if found == SCHEMA_VERSION:
        return
    _refuse_newer(found)
    from alembic import command  # noqa: PLC0415  (0.4 s that only a migration should cost)
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except (CommandError, SQLAlchemyError) as error:
        step = f"the migration from schema {found}" if found else "setting up its tables"
        raise DatabaseError(f"{step} failed: {in_words(error)}") from error


def _require_schema(found: str | None) -> None:
    _refuse_newer(found)
    if found is None:
        raise DatabaseError("it holds no tables of care-sweep")
    if found != SCHEMA_VERSION:
        raise DatabaseError(
            f"it has schema {found}, this program reads {SCHEMA_VERSION}: `care-sweep db upgrade` first"
        )


def _refuse_newer(found: str | None) -> None:
    if found is not None and found > SCHEMA_VERSION:
        raise DatabaseError(
            f"it has schema {found}, this program knows {SCHEMA_VERSION}: "
            "install the newer care-sweep, or restore a backup from before the upgrade"
        )


def schema_version(connection: Connection) -> str | None:
    """The migration that a database stands at, None where it has had none."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    version: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return version


def _remedy(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "; install care-sweep[postgresql]"
    if isinstance(error, ArgumentError):
        return "; write sqlite:////folder/store.db or postgresql://user:password@host/name"
    if isinstance(error, DatabaseUnavailable):
        return "; look at CARE_SWEEP_DATABASE_URL"
    if isinstance(error, SQLAlchemyError | DatabaseDamaged):
        return "; look at CARE_SWEEP_DATABASE_URL, and keep the file: what it holds may be all there is"
    return ""


def _strict_json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _without_password(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "of an unreadable URL"
