"""Fixtures of the service: one inside the test's process, one as the real process that users meet."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fabrication import Fabricator
from fastapi.testclient import TestClient
from sqlalchemy import create_engine
from typer.testing import CliRunner

from care_sweep.cli import app
from care_sweep.client import Client
from care_sweep.settings import Settings
from care_sweep.store import Store, open_database
from service.app import create_app

Run = Callable[..., Any]


@contextmanager
def opened(settings: Settings) -> Iterator[Store]:
    store = Store(open_database(settings.database_url))
    try:
        yield store
    finally:
        store.engine.dispose()


def run_python(program: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def top_modules(program: str) -> set[str]:
    """The packages that a fresh interpreter has loaded after a program."""
    names = "' '.join({name.partition('.')[0] for name in sys.modules})"
    return set(run_python(f"import sys; {program}; print({names})").split())


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.from_environment({"CARE_SWEEP_HOME": str(tmp_path / "home")})


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    with opened(settings) as store:
        yield store


@pytest.fixture
def fabricate(store: Store, settings: Settings) -> Fabricator:
    return Fabricator(store, settings.storage_uri)


@cache
def _documented_paths() -> Any:
    nowhere = Settings.from_environment({})
    return create_app(nowhere, Store(create_engine("sqlite://"))).openapi()["paths"]


class DocumentedClient(TestClient):
    """Fails where the service answers a status that its OpenAPI document does not list."""

    def request(self, method: str, url: Any, **options: Any) -> Any:
        response = super().request(method, url, **options)
        for template, operations in _documented_paths().items():
            pattern = re.sub(r"\\{\w+\\}", "[^/:]+", re.escape(template))
            operation = operations.get(method.lower())
            if operation and re.fullmatch(pattern, response.request.url.path):
                documented = operation["responses"].get(str(response.status_code))
                assert documented, f"{method} {template} answered {response.status_code}, not in OpenAPI"
                media_type = response.headers.get("content-type", "").partition(";")[0]
                assert not media_type or media_type in documented["content"], (template, media_type)
        return response


@pytest.fixture
def http(settings: Settings, store: Store) -> Iterator[TestClient]:
    """The service in this process; what it does not foresee is a 500, as for a user."""
    with DocumentedClient(create_app(settings, store), raise_server_exceptions=False) as client:
        yield client


@dataclass
class Asked:
    """A request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Recorder(ThreadingHTTPServer):
    """A server in place of Ray's dashboard or a collector: it keeps what arrives, and answers all the same.

    Attributes:
        answer: status, headers and body.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.arrived: list[Asked] = []
        self.answer: tuple[int, Mapping[str, str], bytes] = (200, {"Content-Type": "application/json"}, b"{}")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        assert isinstance(self.server, Recorder)
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        self.server.arrived.append(Asked(self.command, self.path, dict(self.headers.items()), body))
        status, headers, content = self.server.answer
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(ConnectionError):  # who asked may have heard enough
            self.wfile.write(content)

    do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    server = Recorder()
    thread = threading.Thread(target=server.serve_forever, args=[0.01])
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class ServiceProcess:
    """`python -m service`, by default on a free port; its store can be opened from here."""

    def __init__(self, settings: Settings, host: str = "127.0.0.1", **further: str) -> None:
        self.settings, self.host, self.further = settings, host, further
        self.log_path = settings.home / "service.log"
        self.start(port=0)

    def start(self, port: int | None) -> None:
        environment = {**os.environ, "CARE_SWEEP_HOME": str(self.settings.home), "PYTHONWARNINGS": "error"}
        environment["CARE_SWEEP_DATABASE_URL"] = self.settings.database_url
        for name in ("CARE_SWEEP_STORAGE_URI", "CARE_SWEEP_DATA_ROOTS"):
            environment.pop(name, None)
        environment |= self.further
        started = time.monotonic()
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service", "--host", self.host, "--port", str(port)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        host = f"[{self.host}]" if ":" in self.host else self.host
        assert line.startswith(f"listening on http://{host}:"), self.log_path.read_text()
        self.seconds_to_ready = time.monotonic() - started
        self.url = line.split()[-1].replace("0.0.0.0", "127.0.0.1")  # noqa: S104

    @property
    def resident_bytes(self) -> int:
        return self._status_bytes("VmRSS")

    @property
    def most_resident_bytes(self) -> int:
        """Since it started."""
        return self._status_bytes("VmHWM")

    def _status_bytes(self, name: str) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024

    def stop(self) -> None:
        self.process.terminate()
        self._wait()

    def kill(self) -> None:
        self.process.kill()
        self._wait()

    def _wait(self) -> None:
        self.process.wait(timeout=30)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def service_process(
    home: Path, database_url: str = "", *, host: str = "127.0.0.1", **further: str
) -> Iterator[ServiceProcess]:
    """A real service with further settings; on SQLite in its home where no other database is named."""
    home.mkdir(parents=True, exist_ok=True)
    environment = {"CARE_SWEEP_HOME": str(home), "CARE_SWEEP_DATABASE_URL": database_url}
    service = ServiceProcess(Settings.from_environment(environment), host, **further)
    try:
        yield service
    finally:
        service.stop()


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A real service that all tests share."""
    with service_process(tmp_path_factory.mktemp("live")) as service:
        yield service


@pytest.fixture(scope="session")
def live_fabricate(live: ServiceProcess) -> Iterator[Fabricator]:
    with opened(live.settings) as store:
        yield Fabricator(store, live.settings.storage_uri)


@pytest.fixture
def own_process(tmp_path: Path) -> Iterator[ServiceProcess]:
    """A real service of one test, which may end it."""
    with service_process(tmp_path / "own") as service:
        yield service


@pytest.fixture
def client(live: ServiceProcess) -> Iterator[Client]:
    with Client(live.url) as client:
        yield client


@pytest.fixture
def run(live: ServiceProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Types a command in an empty folder and checks its exit status."""
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()

    def run(*arguments: str, status: int = 0, url: str = live.url) -> Any:
        environment = {"COLUMNS": "200", "CARE_SWEEP_HOME": str(tmp_path / "home"), "CARE_SWEEP_URL": url}
        result = runner.invoke(app, arguments, env=environment, prog_name="care-sweep")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code == status, result.stdout + result.stderr
        return result

    return run
