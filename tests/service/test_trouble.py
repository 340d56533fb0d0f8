"""The process that users meet, on each database: equal requests, a crash before the reply, trouble."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from conftest import ServiceProcess, opened, service_process
from fabrication import Fabricator, document
from postgresql_server import PostgreSQLServer

from care_sweep.client import Client
from care_sweep.spec import SweepState


@pytest.fixture(params=["sqlite", "postgresql"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service of this test's own on each database."""
    url = ""
    if request.param == "postgresql":
        create: Callable[..., str] = request.getfixturevalue("postgresql")
        url = create()
    with service_process(tmp_path / "home", url) as service:
        yield service


def _ids(service: ServiceProcess) -> list[str]:
    with opened(service.settings) as store:
        return [record.id for record in store.sweeps(page_size=1000).items]


def test_a_hundred_equal_requests_at_once_are_one_sweep(service: ServiceProcess) -> None:
    together = threading.Barrier(100)

    def submit(_: int) -> Any:
        with httpx2.Client(base_url=service.url, timeout=60) as http:
            http.get("/healthz")
            together.wait()
            return http.post("/v1/sweeps", json=document(), headers={"Idempotency-Key": "same"})

    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(submit, range(100)))
    assert sorted(answer.status_code for answer in answers) == [200] * 99 + [201]
    assert all(answer.json() == answers[0].json() for answer in answers)
    assert _ids(service) == [answers[0].json()["id"]]


def test_a_crash_between_commit_and_reply_doubles_nothing(service: ServiceProcess) -> None:
    address = urlsplit(service.url)
    body = b'{"name": "a", "space": "cifar10-mini", "num_trials": 2}'
    head = (
        "POST /v1/sweeps HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Idempotency-Key: one\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((address.hostname, address.port or 0), timeout=20) as connection:
        connection.sendall(head.encode() + body)
        while not (committed := _ids(service)):
            time.sleep(0.001)
        service.kill()
    service.start(port=0)
    with httpx2.Client(base_url=service.url, timeout=20) as http:
        headers = {"Idempotency-Key": "one", "Content-Type": "application/json"}
        again = http.post("/v1/sweeps", content=body, headers=headers)
        assert (again.status_code, [again.json()["id"]]) == (200, committed)
        other = http.post("/v1/sweeps", json=document(), headers={"Idempotency-Key": "one"})
        assert other.status_code == 422
    assert _ids(service) == committed


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "silent"])
def test_a_database_that_is_away_is_told_soon_and_the_rest_lands(
    how: str, postgresql_server: PostgreSQLServer, tmp_path: Path
) -> None:
    """Thirty readers of events, who come back by themselves, and a request a second."""
    with (
        service_process(tmp_path / "home", postgresql_server.create()) as service,
        opened(service.settings) as store,
        Client(service.url) as client,
        ExitStack() as away,
    ):
        fabricate = Fabricator(store, service.settings.storage_uri)
        lease = fabricate.claimed()
        heard: list[list[int]] = [[] for _ in range(30)]

        def follow(number: int) -> None:
            heard[number] += [event["sequence"] for event in client.events(lease.sweep_id)]

        readers = [threading.Thread(target=follow, args=[number]) for number in range(30)]
        for reader in readers:
            reader.start()
        store.engine.dispose()
        if how == "silent":
            away.enter_context(postgresql_server.silent())
        else:
            postgresql_server.stop()
            away.callback(postgresql_server.start)
        _is_refused_for(8, service.url, lease.sweep_id)
        away.close()
        deadline = time.monotonic() + 10
        with httpx2.Client(base_url=service.url, timeout=20) as http:
            while http.get("/readyz").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        fabricate.trial(lease, 0, 0.5)
        lease.finish_sweep(SweepState.SUCCEEDED)
        for reader in readers:
            reader.join(timeout=60)
        told = [record.sequence for record in store.events(lease.sweep_id)]
        assert heard == [told] * 30


def _is_refused_for(seconds: float, url: str, sweep_id: str) -> None:
    """Every kind of request, again and again: 503 in time, though the process is well."""
    until = time.monotonic() + seconds
    with httpx2.Client(base_url=url, timeout=20) as http:
        while time.monotonic() < until:
            for method, path in (
                ("POST", "/v1/sweeps"),
                ("GET", f"/v1/sweeps/{sweep_id}"),
                ("POST", f"/v1/sweeps/{sweep_id}:pause"),
                ("GET", "/readyz"),
            ):
                began = time.monotonic()
                sent = {"json": document()} if path == "/v1/sweeps" else {}
                answer = http.request(method, path, headers={"Idempotency-Key": "k"}, **sent)  # type: ignore[arg-type]
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "5"), path
                assert time.monotonic() - began < 5, path
                assert http.get("/healthz").status_code == 200
            time.sleep(0.5)
