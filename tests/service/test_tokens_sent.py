"""Client and command line against a service that wants tokens, and where a token must never show."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from conftest import ServiceProcess, opened, service_process
from fabrication import Fabricator, document
from typer.testing import CliRunner

from care_sweep.cli import app
from care_sweep.client import Client
from care_sweep.connection import Connection
from care_sweep.errors import ServiceError
from care_sweep.store import Caller, Scope


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with service_process(tmp_path_factory.mktemp("guarded"), CARE_SWEEP_AUTH="required") as service:
        yield service


@pytest.fixture(scope="module")
def token(guarded: ServiceProcess) -> str:
    with opened(guarded.settings) as store:
        return store.tokens.create("alice", Scope.SUBMIT, expires_in_seconds=None)[0]


def _type(guarded: ServiceProcess, *arguments: str, status: int = 0, **environment: str) -> Any:
    environment |= {"CARE_SWEEP_URL": guarded.url, "COLUMNS": "200"}
    result = CliRunner().invoke(app, arguments, env=environment, prog_name="care-sweep")
    assert result.exit_code == status, result.stdout + result.stderr
    return result


def test_the_command_line_sends_the_token_of_its_user(
    guarded: ServiceProcess, token: str, tmp_path: Path
) -> None:
    home = {"CARE_SWEEP_HOME": str(tmp_path)}
    said = _type(guarded, "list", status=1, **home).stderr
    assert "this service wants a token" in said
    assert "CARE_SWEEP_TOKEN" in said
    _type(guarded, "list", **home, CARE_SWEEP_TOKEN=token)
    path = tmp_path / "token"
    path.write_text(token)
    path.chmod(0o600)
    _type(guarded, "list", **home)
    path.chmod(0o644)
    assert f"chmod 600 {path}" in _type(guarded, "list", status=1, **home).stderr
    said = _type(guarded, "list", "--json", status=1, **home, CARE_SWEEP_TOKEN="cs_" + "x" * 43).stderr
    assert json.loads(said)["status"] == 401
    assert "xxx" not in said


def test_a_client_does_everything_with_its_token(guarded: ServiceProcess, token: str, tmp_path: Path) -> None:
    with opened(guarded.settings) as store:
        fabricate = Fabricator(store.seen_by(Caller("alice", Scope.SUBMIT)), guarded.settings.storage_uri)
        sweep = fabricate.finished()
    with Client(guarded.url, token=token) as client:
        assert client.download(sweep, tmp_path).stat().st_size == 700_000
        assert [event["data"]["state"] for event in client.events(sweep) if event["kind"] == "sweep"]
        assert "".join(client.follow_logs(sweep, 0)) == "trial 0 begins\n"
        assert client.sweep(client.submit(document())["id"])["owner"] == "alice"
    with Client(guarded.url, token="") as stranger, pytest.raises(ServiceError) as refused:
        list(stranger.events(sweep))
    assert refused.value.status == 401


def test_a_token_does_not_follow_a_redirect_to_another_place(tmp_path: Path) -> None:
    seen: list[str | None] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            if self.path == "/first":
                self.send_response(302)
                self.send_header("Location", f"http://127.0.0.1:{second.server_port}/second")
            else:
                self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    first, second = HTTPServer(("127.0.0.1", 0), Elsewhere), HTTPServer(("127.0.0.1", 0), Elsewhere)
    for server in (first, second):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    connection = Connection(f"http://127.0.0.1:{first.server_port}", 10.0, "cs_secret")
    connection.download("/first", tmp_path / "file", needs_digest=False)
    connection.close()
    for server in (first, second):
        server.shutdown()
        server.server_close()
    assert seen == ["Bearer cs_secret", None]


def test_the_log_of_a_service_tells_no_token(guarded: ServiceProcess, token: str) -> None:
    with httpx2.Client(base_url=guarded.url) as http:
        headers = {"Authorization": f"Bearer {token}"}
        for path in (f"/v1/sweeps/{token}", f"/v1/sweeps/{token}:cancel", f"/v1/sweeps?token={token}"):
            http.get(path, headers=headers)
            http.post(path)
        http.post("/v1/sweeps/a%0aINFO%20forged%1b[2J:cancel")
    log = guarded.log_path.read_text()
    assert "refused 401: POST /v1/sweeps/cs_***:cancel" in log
    assert "refused 401: POST /v1/sweeps/aINFO forged\\x1b[2J:cancel" in log
    assert token not in log


def test_a_service_that_cannot_start_tells_no_password(tmp_path: Path) -> None:
    environment = {**os.environ, "CARE_SWEEP_HOME": str(tmp_path)}
    environment["CARE_SWEEP_DATABASE_URL"] = "postgresql+psycopg://me:hunter2@127.0.0.1:1/care"
    command = [sys.executable, "-m", "service", "--port", "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "127.0.0.1:1/care" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr
