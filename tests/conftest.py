"""What tests of several rooms need: a real PostgreSQL and an object store, each started once."""

import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from postgresql_server import PostgreSQLServer
from xdist.scheduler import LoadFileScheduling


class _ByFileOrCluster(LoadFileScheduling):
    """A file's tests stay together, and so do those of `tests/run`, most of which share one Ray cluster."""

    def _split_scope(self, nodeid: str) -> str:
        return "tests/run" if nodeid.startswith("tests/run/") else str(super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByFileOrCluster:
    """How the processes of `make test` divide the tests."""
    return _ByFileOrCluster(config, log)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Callable[..., str]]:
    """A function that makes a database of the newest schema, in place of one of that name; its URL."""
    server = PostgreSQLServer()
    try:
        yield server.create
    finally:
        server.end()


@pytest.fixture
def postgresql_server() -> Iterator[PostgreSQLServer]:
    """A server of one test, which may take it away."""
    server = PostgreSQLServer()
    try:
        yield server
    finally:
        server.end()


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
