"""What a client may send and hold open: how much, how deep, how often, how slowly, and under which name."""

import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx2
import pytest
from conftest import DocumentedClient, ServiceProcess, opened, service_process
from fabrication import Fabricator, document
from fastapi.testclient import TestClient

from care_sweep.settings import Settings
from care_sweep.store import Scope, Store
from care_sweep.supervise import Instance
from service import body, connections
from service.access import Access
from service.app import create_app
from service.headers import SECURITY_HEADERS
from service.origin import own_names

NUM_HALF_OPEN = 500


# --- how deep and how large ---


@pytest.mark.parametrize("text", ["[" * 33 + "]" * 33, '{"a":' * 40 + "1" + "}" * 40, "- " * 40 + "1"])
def test_a_deep_document_is_refused(http: TestClient, text: str) -> None:
    answer = http.post("/v1/sweeps", content=text, headers={"Content-Type": "application/yaml"})
    assert (answer.status_code, "at most 32 levels" in answer.text) == (422, True)


@pytest.mark.parametrize("num_parameters", [100, 101])
def test_a_space_has_at_most_a_hundred_parameters(http: TestClient, num_parameters: int) -> None:
    """They are unknown ones, so both are refused: the one for their number, the other for their names."""
    parameters = {f"p{n}": {"type": "float", "low": 0.0, "high": 1.0} for n in range(num_parameters)}
    sent = json.dumps(document(space__parameters=parameters, space__baselines=[]))
    told = http.post("/v1/sweeps", content=sent, headers={"Content-Type": "application/json"}).json()
    assert ("at most 100" in json.dumps(told)) == (num_parameters > 100)


def test_yaml_has_its_own_bound(http: TestClient) -> None:
    text = "# " + "x" * 256 * 1024 + "\nname: a"
    answer = http.post("/v1/sweeps", content=text, headers={"Content-Type": "application/yaml"})
    assert (answer.status_code, "262144" in answer.text) == (422, True)


# --- how often ---


class _Monotonic:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_each_token_and_each_stranger_has_a_rate(settings: Settings, store: Store) -> None:
    clock = _Monotonic()
    app = create_app(settings, store, requires_tokens=True)
    app.state.access = Access(store.tokens, is_required=True, requests_per_second=1, monotonic=clock)
    tokens = [store.tokens.create(n, Scope.READ, expires_in_seconds=None)[0] for n in ("a", "b")]
    with DocumentedClient(app) as http:

        def ask(token: str | None, path: str = "/v1/search-spaces") -> Any:
            return http.get(path, headers={"Authorization": f"Bearer {token}"} if token else {})

        # Until a token is known, it counts for its address.
        assert [ask(tokens[0]).status_code for _ in range(13)] == [200] * 11 + [429] * 2
        assert ask(tokens[1]).status_code == 200
        assert [ask("cs_unknown").status_code for _ in range(9)] == [401] * 8 + [429]
        for path in ("/v1/search-spaces", "/healthz", "/openapi.json", "/docs", "/nowhere", "/v1/sweeps/"):
            assert ask(None, path).status_code == 429, path
        assert http.get("/ray/", headers={"Authorization": "Basic %%%"}).status_code == 429
        assert http.put("/v1/sweeps").status_code == 429
        late = ask(tokens[0])
        assert (late.headers["retry-after"], late.json()["detail"]) == (
            "1",
            "too many requests; try again in 1 s",
        )
        clock.now += 1
        assert ask(tokens[0]).status_code == 200
        clock.now += 3  # and is looked up again
        assert [ask("cs_unknown").status_code for _ in range(5)] == [401] * 4 + [429]
        assert ask(tokens[0]).status_code == 200, "others at its address are not its fault"


@pytest.mark.parametrize("path", ["/openapi.json", "/healthz", "/nowhere", "/v1/sweeps/"])
def test_what_asks_for_no_token_has_a_rate_too(settings: Settings, store: Store, path: str) -> None:
    app = create_app(settings, store, requires_tokens=True)
    app.state.access = Access(store.tokens, is_required=True, requests_per_second=1, monotonic=_Monotonic())
    with DocumentedClient(app) as http:
        answers = [http.get(path, follow_redirects=False) for _ in range(11)]
    assert {answer.status_code for answer in answers[:10]} <= {200, 404}
    assert (answers[10].status_code, answers[10].json()["title"]) == (429, "Too many requests")
    assert {name: answers[10].headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS


def test_nobody_is_slowed_down_where_no_token_is_required(settings: Settings, store: Store) -> None:
    app = create_app(settings, store)
    app.state.access = Access(store.tokens, is_required=False, requests_per_second=1)
    with DocumentedClient(app) as http:
        assert {http.get("/v1/search-spaces").status_code for _ in range(50)} == {200}


# --- what every answer says ---


@pytest.mark.parametrize("path", ["/v1/sweeps", "/v1/sweeps/absent", "/nothing", "/openapi.json", "/healthz"])
def test_every_answer_has_the_security_headers(http: TestClient, path: str) -> None:
    answer = http.get(path)
    for name, value in SECURITY_HEADERS.items():
        assert answer.headers.get_list(name) == [value]
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_so_has_an_answer_to_a_bug(settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Store) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Store, "cluster", fail)
    with TestClient(create_app(settings, store), raise_server_exceptions=False) as http:
        answer = http.get("/v1/cluster")
    assert answer.status_code == 500
    assert {name: answer.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS


def test_files_and_streams_have_them_too(http: TestClient, fabricate: Fabricator) -> None:
    here = f"/v1/sweeps/{fabricate.finished()}"
    for path in ("export", "checkpoints/best", "trials/0/logs", "trials/0/checkpoint", "events"):
        answer = http.get(f"{here}/{path}")
        assert answer.status_code == 200
        assert {name: answer.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS


def test_no_page_of_another_origin_is_told_anything(http: TestClient) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for method in ("OPTIONS", "GET"):
        answer = http.request(method, "/v1/sweeps", headers=headers)
        assert not [name for name in answer.headers if name.startswith("access-control")]


# --- under which name ---


def test_off_loopback_the_named_hosts_alone_are_answered(settings: Settings, store: Store) -> None:
    names = own_names("0.0.0.0", "0.0.0.0", ("sweeps.example",))  # noqa: S104
    with DocumentedClient(create_app(settings, store, names=names), base_url="http://sweeps.example") as http:
        assert http.get("/v1/sweeps").status_code == 200
        for host in ("evil.example", "10.0.0.7:8484", "sweeps.example.evil.example"):
            assert http.get("/v1/sweeps", headers={"Host": host}).status_code == 421
        assert http.get("/healthz", headers={"Host": "10.0.0.7:8484"}).status_code == 200, "a probe's"


# --- where it listens ---


def test_off_loopback_nobody_is_answered_without_a_token(tmp_path: Path) -> None:
    with service_process(tmp_path / "own", host="0.0.0.0") as service:  # noqa: S104
        assert "care-sweep token create" in service.log_path.read_text()
        with opened(service.settings) as store, httpx2.Client(base_url=service.url) as http:
            token, _ = store.tokens.create("alice", Scope.READ, expires_in_seconds=None)
            assert http.get("/v1/sweeps").status_code == 401
            assert http.get("/readyz").status_code == 200
            port = urlsplit(service.url).port or 0
            assert Instance(service.settings, "0.0.0.0", port, tmp_path).requires_tokens  # noqa: S104
            headers = {"Authorization": f"Bearer {token}"}
            assert http.get("/v1/sweeps", headers=headers).status_code == 200


def test_the_service_cannot_be_had_open_off_loopback() -> None:
    settings = Settings.from_environment({"CARE_SWEEP_AUTH": "auto"})
    for address in ("0.0.0.0", "::", "10.0.0.1", "2001:db8::1", "169.254.0.1"):  # noqa: S104
        assert settings.requires_tokens(address)
    for address in ("127.0.0.1", "127.8.8.8", "::1"):
        assert not settings.requires_tokens(address)
        assert Settings.from_environment({"CARE_SWEEP_AUTH": "required"}).requires_tokens(address)


# --- how slowly ---


def test_a_body_that_does_not_come_is_given_up(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "_BODY_SECONDS", 0.2)

    async def slowly() -> Any:
        yield b'{"name":'
        await anyio.sleep(60)

    async def story() -> httpx2.Response:
        transport = httpx2.ASGITransport(create_app(settings, store))
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as http:
            headers = {"Content-Type": "application/json"}
            return await http.post("/v1/sweeps", content=slowly(), headers=headers)

    answer = anyio.run(story)
    assert (answer.status_code, answer.headers["connection"]) == (408, "close")
    assert answer.json()["detail"] == "the body did not come within 0.2 s"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with service_process(tmp_path_factory.mktemp("alone")) as service:
        yield service


def _connect(service: ServiceProcess) -> socket.socket:
    address = urlsplit(service.url)
    return socket.create_connection((address.hostname, address.port or 0), timeout=60)


def test_half_open_connections_leave_room_for_the_others(alone: ServiceProcess) -> None:
    """Some say nothing, some half of a head, some a head and half of a body."""
    beginnings = (
        b"",
        b"GET /v1/sweeps HTTP/1.1\r\nHost: localh",
        b"POST /v1/sweeps HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 1000\r\n\r\n{",
    )
    with ExitStack() as stack:
        for number in range(NUM_HALF_OPEN):
            connection = stack.enter_context(_connect(alone))
            connection.sendall(beginnings[number % len(beginnings)])
        seconds = []
        for _ in range(200):
            started = time.perf_counter()
            with _connect(alone) as connection:
                connection.sendall(b"GET /v1/sweeps HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                assert _read_to_the_end(connection).startswith(b"HTTP/1.1 200")
            seconds.append(time.perf_counter() - started)
    p99 = statistics.quantiles(seconds, n=100)[98]
    print(f"{NUM_HALF_OPEN} half-open: median {statistics.median(seconds):.4f} s, p99 {p99:.4f} s")
    assert p99 < 1


def _read_to_the_end(connection: socket.socket) -> bytes:
    received = b""
    while data := connection.recv(65536):
        received += data
    return received


@pytest.mark.slow
def test_who_sends_no_whole_head_is_cut_off_however_it_drips(alone: ServiceProcess) -> None:
    with _connect(alone) as silent, _connect(alone) as dripping, _connect(alone) as again:
        again.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert again.recv(65536).startswith(b"HTTP/1.1 200")
        started = time.monotonic()
        dripping.settimeout(1.0)
        has_ended = False
        while not has_ended and time.monotonic() - started < 3 * connections._HEAD_SECONDS:
            try:
                for one in (dripping, again):
                    one.sendall(b"G")
                has_ended = dripping.recv(10) == b""
            except TimeoutError:
                continue
            except OSError:
                has_ended = True
        assert has_ended
        assert _read_to_the_end(silent) == b""
        print(f"cut off after {time.monotonic() - started:.1f} s")


def test_a_request_that_takes_long_is_not_cut_off(alone: ServiceProcess) -> None:
    program = (
        "import asyncio, sys\n"
        "from service import connections\n"
        "connections._HEAD_SECONDS = 0.2\n"
        "import uvicorn\n"
        "async def app(scope, receive, send):\n"
        "    await asyncio.sleep(1)\n"
        "    await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
        "    await send({'type': 'http.response.body', 'body': b'done'})\n"
        "listening = connections.listen('127.0.0.1', 0)\n"
        "print(listening.getsockname()[1], flush=True)\n"
        "http = connections.ImpatientProtocol\n"
        "config = uvicorn.Config(app, http=http, lifespan='off', log_level='error')\n"
        "uvicorn.Server(config).run(sockets=[listening])\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        with httpx2.Client(base_url=url, timeout=20) as http:
            assert [http.get("/").text for _ in range(2)] == ["done", "done"], "on one connection"
        process.terminate()
