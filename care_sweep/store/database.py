"""How the database is opened, made durable and brought to this version's schema."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from care_sweep.errors import DatabaseError
from care_sweep.store.schema import SCHEMA_VERSION

__all__ = ["open_database", "reading", "schema_version", "writing"]

_BUSY_SECONDS = 30


def open_database(url: str) -> Engine:
    """An engine on `url` with the newest schema; an empty database is set up, an older one migrated.

    SQLite runs in WAL with synchronous=FULL: a commit that returned survives a power cut.

    Raises:
        DatabaseError: the URL is unusable, the database out of reach, or its schema newer than this program.
    """
    try:
        address = make_url(url)
        if address.get_backend_name() == "sqlite" and address.database:
            Path(address.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(address, json_serializer=_strict_json, pool_pre_ping=True)
        try:
            if engine.dialect.name == "sqlite":
                _make_sqlite_durable(engine)
            with writing(engine) as connection:
                _upgrade(connection)
        except BaseException:
            engine.dispose()
            raise
    except (DatabaseError, SQLAlchemyError, ImportError, OSError) as error:
        problem = f"the database {_without_password(url)} cannot be opened: {_in_words(error)}"
        raise DatabaseError(problem + _remedy(error)) from error
    return engine


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction that writes. On SQLite it takes the write lock at once: reading first would fail."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.execution_options(care_sweep_begin="BEGIN IMMEDIATE")
        with connection.begin():
            yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One consistent snapshot."""
    with engine.connect() as connection, connection.begin():
        yield connection


def _make_sqlite_durable(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own
        connection.execute(f"PRAGMA busy_timeout={_BUSY_SECONDS * 1000}")
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            raise DatabaseError(
                f"SQLite's journal mode here is {mode!r}, not WAL; use a file on a local disk"
            )
        for pragma in ("synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("care_sweep_begin", "BEGIN"))


def _upgrade(connection: Connection) -> None:
    """Migrate inside the caller's transaction; a second process waits for it and then finds it done."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(7281992)"))
    found = schema_version(connection)
    if found == SCHEMA_VERSION:
        return
    if found is not None and found > SCHEMA_VERSION:
        raise DatabaseError(
            f"it has schema {found}, this program knows {SCHEMA_VERSION}: "
            "install the newer care-sweep, or restore a backup from before the upgrade"
        )
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
        raise DatabaseError(f"{step} failed: {_in_words(error)}") from error


def schema_version(connection: Connection) -> str | None:
    """The migration that a database stands at, None where it has had none."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    version: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return version


def _in_words(error: Exception) -> str:
    """What the database or the system said, without the statement and the links of SQLAlchemy."""
    return str(getattr(error, "orig", None) or error)


def _remedy(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "; install the driver of that database beside care-sweep"
    if isinstance(error, SQLAlchemyError):
        return "; look at CARE_SWEEP_DATABASE_URL, and keep the file: what it holds may be all there is"
    return ""


def _strict_json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _without_password(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "of an unreadable URL"
