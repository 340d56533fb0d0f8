"""The databases on which a store must keep its contract: a test that takes `store` runs on each of them."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from situations import Clock

from care_sweep.store import Store, open_database


@pytest.fixture(scope="session")
def empty_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy: a migration in each test would be most of the suite's time."""
    path = tmp_path_factory.mktemp("empty") / "store.db"
    open_database(f"sqlite:///{path}").dispose()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, empty_sqlite: Path, tmp_path: Path) -> str:
    """A database of this test's own, with the newest schema and no rows."""
    if request.param == "postgresql":
        create: Callable[..., str] = request.getfixturevalue("postgresql")
        return create()
    return f"sqlite:///{shutil.copy(empty_sqlite, tmp_path / 'store.db')}"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database_url: str, clock: Clock) -> Iterator[Store]:
    engine = open_database(database_url)
    yield Store(engine, clock)
    engine.dispose()


@pytest.fixture
def other_store(database_url: str, clock: Clock) -> Iterator[Store]:
    """The same database, opened by somebody else."""
    engine = open_database(database_url)
    yield Store(engine, clock)
    engine.dispose()
