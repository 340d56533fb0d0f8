"""`care-sweep db` as an operator types it."""

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from typer.testing import CliRunner

from care_sweep.cli import app
from care_sweep.search.catalog import resolve_sweep
from care_sweep.store import Store, open_database


def _db(*arguments: str, status: int = 0) -> Any:
    result = CliRunner().invoke(app, ["db", *arguments], prog_name="care-sweep")
    assert result.exit_code == status, result.stdout + result.stderr
    return result


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A database with one sweep."""
    url = f"sqlite:///{tmp_path / 'source.db'}"
    engine = open_database(url)
    Store(engine).submit(resolve_sweep({"name": "one", "space": "cifar10-mini", "num_trials": 2}))
    engine.dispose()
    return url


def test_an_empty_database_is_set_up(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new' / 'store.db'}"
    assert "the database has schema 0" in _db("upgrade", url).stdout
    assert _db("check", url).stdout.startswith("all is well: 0 ")


def test_what_is_not_there_is_refused_and_not_made(tmp_path: Path) -> None:
    absent, target = f"sqlite:///{tmp_path / 'typo.db'}", f"sqlite:///{tmp_path / 'target.db'}"
    for arguments in (["check", absent], ["copy", absent, target]):
        said = _db(*arguments, status=1).stderr
        assert "typo.db cannot be opened: there is no such file" in said
    assert list(tmp_path.iterdir()) == []


def test_a_copy_is_compared(url: str, tmp_path: Path) -> None:
    target = f"sqlite:///{tmp_path / 'target.db'}"
    copied = json.loads(_db("copy", url, target, "--json").stdout)
    assert copied["sweeps"]["num_rows"] == 1
    assert "the target holds sweeps" in _db("copy", url, target, status=1).stderr
    assert "1 sweeps" in _db("check", target).stdout


def test_damage_is_told_and_is_a_failure(url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO trials (sweep_id, number, parameters, is_baseline, state, attempt, last_epoch)"
                " SELECT id, 0, '{}', 0, 'RUNNING', 1, 3 FROM sweeps"
            )
        )
    engine.dispose()
    assert "stands at epoch 3 with 0 measurements" in _db("check", url, status=1).stdout


def test_a_database_out_of_reach_is_an_error_in_a_line() -> None:
    said = _db("check", "postgresql+psycopg://me:hunter2@127.0.0.1:1/none", status=1).stderr
    assert said.startswith(
        "error: the database postgresql+psycopg://me:***@127.0.0.1:1/none cannot be opened"
    )
    assert "hunter2" not in said


@pytest.mark.parametrize("command", ["check", "copy"])
def test_a_damaged_file_is_told_in_words(url: str, tmp_path: Path, command: str) -> None:
    engine = create_engine(url)
    store = Store(engine)
    for _ in range(200):
        store.submit(resolve_sweep({"name": "one", "space": "cifar10-mini", "num_trials": 2}))
    engine.dispose()
    path = tmp_path / "source.db"
    content = path.read_bytes()
    path.write_bytes(content[:-300_000] + b"\xaa" * 200_000 + content[-100_000:])
    targets = [f"sqlite:///{tmp_path / 'target.db'}"] if command == "copy" else []
    said = _db(command, url, *targets, status=1)
    words = said.stdout + said.stderr
    assert "SQLite" in words or "damaged" in words
    assert "sqlalchemy" not in words and "[SQL" not in words
