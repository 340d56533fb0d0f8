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

import care_sweep
from care_sweep.cli import app
from care_sweep.client import Client
from care_sweep.connection import Connection
from care_sweep.errors import CheckpointError, ServiceError
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


class _Seen(HTTPServer):
    """Keeps what each request showed as its token; `/first` leads to `next_url`, all else is empty."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _SeenHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.next_url = ""
        self.shown: list[str | None] = []


class _SeenHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, _Seen)
        self.server.shown.append(self.headers.get("Authorization"))
        self.send_response(302 if self.path == "/first" else 200)
        if self.path == "/first":
            self.send_header("Location", self.server.next_url)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def places() -> Iterator[tuple[_Seen, _Seen]]:
    """Two servers; the first leads to the second."""
    first, second = _Seen(), _Seen()
    first.next_url = f"{second.url}/second"
    for server in (first, second):
        threading.Thread(target=server.serve_forever, args=[0.01]).start()
    yield first, second
    for server in (first, second):
        server.shutdown()
        server.server_close()


def test_a_token_does_not_follow_a_redirect_to_another_place(
    places: tuple[_Seen, _Seen], tmp_path: Path
) -> None:
    first, second = places
    connection = Connection(first.url, 10.0, "cs_secret")
    connection.download("/first", tmp_path / "file", needs_digest=False)
    connection.close()
    assert (first.shown, second.shown) == (["Bearer cs_secret"], [None])


def test_a_checkpoint_is_read_from_a_service_that_wants_a_token(
    guarded: ServiceProcess, token: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with opened(guarded.settings) as store:
        fabricate = Fabricator(store.seen_by(Caller("alice", Scope.SUBMIT)), guarded.settings.storage_uri)
        url = f"{guarded.url}/v1/sweeps/{fabricate.finished()}/checkpoints/best"
    home = {"CARE_SWEEP_HOME": str(tmp_path)}
    for command in (["report", url], ["export-weights", url], ["embed", str(tmp_path), "--checkpoint", url]):
        assert "this service wants a token" in _type(guarded, *command, status=1, **home).stderr
        said = _type(guarded, *command, status=1, **home, CARE_SWEEP_TOKEN=token).stderr
        assert f"{url}: no tar" in said, "it came, and is none"
    monkeypatch.setenv("CARE_SWEEP_TOKEN", token)
    monkeypatch.setenv("CARE_SWEEP_URL", "http://user:secret@127.0.0.1:1")
    with pytest.raises(ServiceError) as refused:
        care_sweep.load(url)
    assert refused.value.status == 401
    assert f"CARE_SWEEP_URL alone, http://***@127.0.0.1:1: set that to {guarded.url}" in str(refused.value)
    assert token not in str(refused.value)


def test_a_checkpoint_from_elsewhere_is_asked_for_without_a_token(
    places: tuple[_Seen, _Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = places
    monkeypatch.setenv("CARE_SWEEP_TOKEN", "cs_secret")
    for service_url, shown in (
        (first.url, "Bearer cs_secret"),
        (f"{first.url}/".replace("http", "HTTP"), "Bearer cs_secret"),
        (second.url, None),
        (first.url.replace("http", "https"), None),
        (first.url.replace("127.0.0.1", "localhost"), None),
        (first.url.replace("127.0.0.1", "127.0.0.1.nip.example"), None),
        ("http://127.0.0.1:port", None),
        ("nonsense", None),
    ):
        monkeypatch.setenv("CARE_SWEEP_URL", service_url)
        for path in ("/file", "/first"):
            with pytest.raises(CheckpointError):
                care_sweep.load(first.url + path)
        assert first.shown == [shown] * 2, service_url
        assert second.shown == [None]
        first.shown.clear()
        second.shown.clear()


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
