"""How a database is opened: durable, migrated once, and refused in words when it cannot be used."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from situations import claimed, in_the_middle, picture, spec
from sqlalchemy import column, delete, func, insert, make_url, select, table, text
from sqlalchemy.exc import IntegrityError

from care_sweep.errors import DatabaseError
from care_sweep.store import Store, database, open_database
from care_sweep.store.database import open_as_it_is, reading, writing
from care_sweep.store.schema import SCHEMA_VERSION, attempts, metadata, sweeps

HERE = Path(__file__).parent
MIGRATIONS = Path(database.__file__).parent / "migrations"


def _refusal(url: str) -> str:
    """The words of the refusal, which are for an operator and not about our libraries."""
    with pytest.raises(DatabaseError) as refused:
        open_database(url)
    words = str(refused.value)
    assert not any(inside in words for inside in ("Traceback", "sqlite3.", "sqlalche.me", "[SQL", "alembic"))
    return words


# --- the contract ---


def test_the_schema_version_is_the_newest_migration() -> None:
    newest = sorted(path.name for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))[-1]
    assert newest.startswith(SCHEMA_VERSION + "_")
    assert ScriptDirectory(str(MIGRATIONS)).get_heads() == [SCHEMA_VERSION]


def test_migrations_build_what_the_schema_says(store: Store) -> None:
    with reading(store.engine) as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == SCHEMA_VERSION


@pytest.mark.parametrize("release", ["0001", "0002", "0003", "0004", "0005", "0006"])
def test_every_released_schema_is_migrated_with_its_rows(database_url: str, release: str) -> None:
    """The rows are written as that release wrote them, by name."""
    engine = open_database(database_url)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with writing(engine) as connection:
        metadata.drop_all(connection)
        connection.execute(text("DELETE FROM alembic_version"))
        config.attributes["connection"] = connection
        command.upgrade(config, release)
        sweep = (
            "INSERT INTO sweeps (id, name, spec, state, created_at, fencing_token, lease_counter)"
            " VALUES ('abc', 'old', :spec, 'QUEUED', 1.5, 0, 0)"
        )
        connection.execute(text(sweep), {"spec": json.dumps(spec().model_dump(mode="json"))})
        connection.exec_driver_sql(
            "INSERT INTO trials (sweep_id, number, parameters, is_baseline, state, attempt, last_epoch)"
            " VALUES ('abc', 0, '{}', FALSE, 'RUNNING', 2, 7)"
        )
        key = {"key": "a key", "body_sha256": "a hash", "sweep_id": "abc", "created_at": time.time()}
        if release >= "0004":
            key["owner"] = "local"
        connection.execute(table("idempotency_keys", *map(column, key)).insert(), key)
    engine.dispose()

    engine = open_database(database_url)
    store = Store(engine)
    record, (trial,) = store.sweep("abc"), store.trials("abc").items
    again = store.submitted("a key", "a hash")
    engine.dispose()
    assert (record.name, record.spec, record.revision, record.active_seconds) == ("old", spec(), 1, 0.0)
    assert (record.owner, again) == ("local", record)
    assert (record.search_seconds, record.num_images, record.queued_at) == (0.0, 0, 1.5)
    assert (trial.state, trial.attempt, trial.last_epoch, trial.is_stop_requested) == ("RUNNING", 2, 7, False)


def test_opening_again_changes_nothing(store: Store, database_url: str) -> None:
    in_the_middle(store)
    before = picture(store)
    open_database(database_url).dispose()
    assert picture(store) == before


def test_a_newer_schema_is_refused_and_untouched(store: Store, database_url: str) -> None:
    in_the_middle(store)
    with writing(store.engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    before = picture(store)

    words = _refusal(database_url)

    assert "has schema 9999, this program knows " + SCHEMA_VERSION in words
    assert "install the newer care-sweep" in words
    assert picture(store) == before


def test_a_schema_that_never_was_is_refused(store: Store, database_url: str) -> None:
    with writing(store.engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    assert "schema 0000" in _refusal(database_url)


def test_a_row_without_its_parent_is_refused(store: Store) -> None:
    orphan = {"sweep_id": "absent", "trial_number": 0, "attempt": 1, "started_at": 0.0}
    with pytest.raises(IntegrityError), writing(store.engine) as connection:
        connection.execute(insert(attempts).values(orphan))


def test_with_a_sweep_goes_all_that_is_its_own(store: Store) -> None:
    lease, bystander = in_the_middle(store), claimed(store)
    with writing(store.engine) as connection:
        connection.execute(delete(sweeps).where(sweeps.c.id == lease.sweep_id))
    left = picture(store)
    assert [row.id for row in left.pop("sweeps")] == [bystander.sweep_id]  # type: ignore[attr-defined]
    assert {name for name, rows in left.items() if rows} == {"events"}
    assert {row.sweep_id for row in left["events"]} == {bystander.sweep_id}


@pytest.mark.parametrize(
    "url",
    [
        "",
        "no url",
        "store.db",
        "nosuch://somewhere/db",
        "mysql://me:hunter2@localhost/db",
        "sqlite+nosuch:///store.db",
        "postgresql+nosuch://me:hunter2@localhost/db",
        "postgresql+psycopg2://me:hunter2@127.0.0.1:1/db",
        "sqlite://",
        "sqlite:///:memory:",
    ],
)
def test_an_unusable_url_is_refused(url: str) -> None:
    words = _refusal(url)
    assert "cannot be opened" in words
    assert "hunter2" not in words


def test_a_database_of_another_kind_is_refused_by_name() -> None:
    words = _refusal("mysql://localhost/db")
    assert "it is neither SQLite nor PostgreSQL; write sqlite:////folder/store.db or postgresql://" in words


# --- a database that is only looked at ---


def _look_refused(url: str) -> str:
    with pytest.raises(DatabaseError, match="cannot be opened") as refused:
        open_as_it_is(url)
    return str(refused.value)


def test_a_database_is_looked_at_as_it_is(store: Store, database_url: str) -> None:
    in_the_middle(store)
    before = picture(store)
    engine = open_as_it_is(database_url)
    assert picture(Store(engine)) == before
    engine.dispose()


def test_a_look_makes_nothing(tmp_path: Path, postgresql: Callable[..., str]) -> None:
    for path in (tmp_path / "store.db", tmp_path / "not" / "there" / "store.db", tmp_path):
        assert "there is no such file" in _look_refused(f"sqlite:///{path}")
    assert list(tmp_path.iterdir()) == []
    absent = make_url(postgresql()).set(database="absent").render_as_string(hide_password=False)
    assert "does not exist" in _look_refused(absent)


def test_a_look_changes_nothing(store: Store, database_url: str, tmp_path: Path) -> None:
    with writing(store.engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    assert "it has schema 0001" in (said := _look_refused(database_url))
    assert "`care-sweep db upgrade` first" in said
    with writing(store.engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert "install the newer care-sweep" in _look_refused(database_url)
    with writing(store.engine) as connection:
        connection.execute(text("DROP TABLE alembic_version"))
    assert "it holds no tables of care-sweep" in _look_refused(database_url)
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as foreign:
        foreign.execute("CREATE TABLE trials (anything)")
    content = other.read_bytes()
    assert "it holds no tables of care-sweep" in _look_refused(f"sqlite:///{other}")
    assert other.read_bytes() == content


# --- SQLite ---


def test_every_connection_is_durable(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'not' / 'yet' / 'store.db'}")
    with ExitStack() as stack:
        for _ in range(4):
            connection = stack.enter_context(engine.connect())
            found = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            }
            assert found == {
                "journal_mode": "wal",
                "synchronous": 2,
                "foreign_keys": 1,
                "busy_timeout": 30_000,
            }
    engine.dispose()


def test_many_processes_may_open_an_empty_database_at_once(tmp_path: Path) -> None:
    command = [sys.executable, HERE / "opening.py", tmp_path, "4", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [0] * 12, done.stderr


def test_a_reader_sees_one_moment(store: Store) -> None:
    with reading(store.engine) as connection:
        number = select(func.count()).select_from(sweeps)
        before = connection.execute(number).scalar_one()
        store.submit(spec())
        assert connection.execute(number).scalar_one() == before
    with reading(store.engine) as connection:
        assert connection.execute(number).scalar_one() == before + 1


def test_a_folder_is_no_database(tmp_path: Path) -> None:
    assert str(tmp_path) in _refusal(f"sqlite:///{tmp_path}")


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "file" in _refusal(f"sqlite:///{tmp_path / 'file' / 'store.db'}")
    assert "file" in _refusal(f"sqlite:///{tmp_path / 'file' / 'below' / 'store.db'}")


def test_a_file_that_is_no_database_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database\n" * 1000)
    assert "not a database" in _refusal(f"sqlite:///{path}")
    assert path.read_text() == "not a database\n" * 1000


def test_a_damaged_database_is_refused(empty_sqlite: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(empty_sqlite, tmp_path / "store.db"))
    database_url = f"sqlite:///{path}"
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * 8000)
    assert str(path) in _refusal(database_url)


def test_the_tables_of_another_program_are_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE trials (anything)")
    assert "trials" in _refusal(f"sqlite:///{path}")
    tables = [name for (name,) in other.execute("SELECT name FROM sqlite_master")]
    other.close()
    assert tables == ["trials"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write every file")
@pytest.mark.parametrize("mode", [0o000, 0o400])
def test_a_file_without_permission_is_refused(empty_sqlite: Path, tmp_path: Path, mode: int) -> None:
    path = Path(shutil.copy(empty_sqlite, tmp_path / "store.db"))
    database_url = f"sqlite:///{path}"
    path.chmod(mode)
    assert str(path) in _refusal(database_url)
