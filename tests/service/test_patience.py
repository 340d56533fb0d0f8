"""How long a client waits where a service asks for patience, and what it asks for again."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from care_sweep.client import Client
from care_sweep.connection import Connection
from care_sweep.errors import ServiceError

Answer = tuple[int, str | None]
BREAKS = 0
"""The status of an answer of 200 that stops in its midst after 0.3 s."""


class _Scripted(ThreadingHTTPServer):
    """Answers with these statuses and values of Retry-After, one a request, then with 200."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = list(answers)
        self.asked: list[tuple[str, float]] = []


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, _Scripted)
        self.rfile.read(int(self.headers.get("content-length", "0")))
        self.server.asked.append((self.command, time.monotonic()))
        status, wait = self.server.answers.pop(0) if self.server.answers else (200, None)
        if status == BREAKS:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{")
            time.sleep(0.3)
            return
        self.send_response(status)
        if wait is not None:
            self.send_header("Retry-After", wait)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing."""


Scripted = Callable[..., _Scripted]


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    servers = []

    def start(*answers: Answer) -> _Scripted:
        server = _Scripted(answers)
        threading.Thread(target=server.serve_forever, args=[0.01]).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def _pauses(server: _Scripted) -> list[float]:
    times = [moment for _, moment in server.asked]
    return [after - before for before, after in itertools.pairwise(times)]


@contextmanager
def _connected(server: _Scripted) -> Iterator[Connection]:
    connection = Connection(f"http://127.0.0.1:{server.server_port}", 10.0)
    try:
        yield connection
    finally:
        connection.close()


@pytest.mark.parametrize("status", [409, 429, 503, 507])
def test_what_may_pass_is_asked_for_again_when_it_says(scripted: Scripted, status: int) -> None:
    server = scripted((status, "1"))
    with _connected(server) as connection:
        assert connection.get("/") == {}
    assert _pauses(server)[0] >= 1


@pytest.mark.parametrize("wait", [None, "0", "Wed, 21 Oct 2065 07:28:00 GMT", "soon", "-5"])
def test_what_says_no_number_is_asked_for_all_the_same(scripted: Scripted, wait: str | None) -> None:
    server = scripted((503, wait))
    with _connected(server) as connection:
        assert connection.get("/") == {}
    assert len(server.asked) == 2


def test_too_many_requests_did_nothing_so_all_are_sent_again(scripted: Scripted) -> None:
    server = scripted((429, "1"), (200, None), (429, "1"), (200, None), (429, "1"), (200, None))
    with Client(f"http://127.0.0.1:{server.server_port}") as client:
        client.pause("one")
        client.change("one", {"priority": 2})
        client.delete("one")
    assert [method for method, _ in server.asked] == ["POST"] * 2 + ["PATCH"] * 2 + ["DELETE"] * 2
    assert min(_pauses(server)[::2]) >= 1


@pytest.mark.parametrize("status", [409, 503])
def test_what_may_have_been_done_is_not_sent_again(scripted: Scripted, status: int) -> None:
    server = scripted((status, "1"))
    with Client(f"http://127.0.0.1:{server.server_port}") as client, pytest.raises(ServiceError) as refused:
        client.pause("one")
    assert (refused.value.status, len(server.asked)) == (status, 1)


def test_patience_has_an_end(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("care_sweep.connection.PATIENCE_SECONDS", 0.5)
    server = scripted(*[(429, "3600")] * 9)
    with _connected(server) as connection, pytest.raises(ServiceError) as refused:
        connection.get("/")
    assert (refused.value.status, len(server.asked)) == (429, 2)


def test_patience_is_not_used_up_by_a_number_of_refusals(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("care_sweep.connection._BACKOFF_SECONDS", (0.001,))
    server = scripted(*[(503, None)] * 9, (200, None), *[(503, None)] * 9)
    with _connected(server) as connection:
        assert connection.get("/") == {}
        connection.download("/", tmp_path / "file", needs_digest=False)
    assert len(server.asked) == 20


def test_a_transfer_uses_up_no_patience(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A download that is refused before and after a transfer which breaks, and took longer than patience."""
    monkeypatch.setattr("care_sweep.connection.PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr("care_sweep.connection._BACKOFF_SECONDS", (0.001,))
    server = scripted((503, None), (BREAKS, None), (503, None))
    with _connected(server) as connection:
        connection.download("/", tmp_path / "file", needs_digest=False)
    assert len(server.asked) == 4


def test_an_answer_of_success_is_the_answer(scripted: Scripted) -> None:
    server = scripted((202, "1"))
    with _connected(server) as connection:
        assert connection.get("/") == {}
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_a_download_waits_too(scripted: Scripted, status: int, tmp_path: Path) -> None:
    server = scripted((status, "1"))
    with _connected(server) as connection:
        file = connection.download("/", tmp_path / "file", needs_digest=False)
    assert file.read_bytes() == b"{}"
    assert _pauses(server)[0] >= 1


def test_a_download_that_is_refused_for_good(scripted: Scripted, tmp_path: Path) -> None:
    server = scripted((404, None))
    with _connected(server) as connection, pytest.raises(ServiceError, match="404"):
        connection.download("/", tmp_path / "file", needs_digest=False)
    assert (len(server.asked), list(tmp_path.iterdir())) == (1, [])


@pytest.mark.parametrize("status", [429, 503])
def test_a_stream_waits_too(scripted: Scripted, status: int) -> None:
    server = scripted((status, "2"), (204, None))
    with _connected(server) as connection:
        assert list(connection.tail("/")) == []
    assert _pauses(server)[0] >= 2
