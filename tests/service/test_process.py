"""The process that users meet: small, soon ready, orderly when it ends, and its streams lose nothing."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from conftest import ServiceProcess, opened, run_python, service_process, top_modules
from fabrication import Fabricator, document

from care_sweep.spec import SweepState
from care_sweep.store.database import writing
from care_sweep.supervise import Instance
from service.connections import listen


def test_it_loads_neither_torch_nor_ray() -> None:
    heavy = {"torch", "torchvision", "ray", "pyarrow", "pandas", "scipy", "sklearn", "obstore"}
    assert not top_modules("import service.__main__, service.app") & heavy


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_it_is_small(own_process: ServiceProcess) -> None:
    idle = own_process.resident_bytes
    with httpx2.Client(base_url=own_process.url) as http:
        assert http.get("/readyz").status_code == 200
        sweep = http.post("/v1/sweeps", json=document()).json()
        assert http.get(sweep["links"]["best"]).status_code == 200
    used = own_process.resident_bytes
    print(f"resident {idle / 2**20:.0f} MiB idle, {used / 2**20:.0f} MiB after a few requests")
    assert idle < 150e6
    assert used < 150e6


def test_it_is_ready_soon(own_process: ServiceProcess) -> None:
    """Beside the libraries that it cannot do without: 2 s on an idle machine, but tests share theirs."""
    ratios = []
    while len(ratios) < 3 and min(ratios, default=3.0) >= 3.0:
        own_process.stop()
        own_process.start(port=0)  # on a database that is there, as at every start but the first
        libraries = float(
            run_python(
                "import time; started = time.perf_counter()\n"
                "import fastapi, numpy, sqlalchemy, uvicorn, yaml\n"
                "print(time.perf_counter() - started)"
            )
        )
        ratios.append(own_process.seconds_to_ready / libraries)
        print(f"ready in {own_process.seconds_to_ready:.2f} s, {ratios[-1]:.1f} times its libraries alone")
    assert min(ratios) < 3.0


def test_connections_send_at_once() -> None:
    """Otherwise each answer on a connection that is kept waits 40 ms for the reader's acknowledgement."""
    with (
        listen("127.0.0.1", 0) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def _has_ipv6() -> bool:
    try:
        listen("::1", 0).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _has_ipv6(), reason="its kernel has IPv6 switched off: no installation brings ::1")
def test_it_listens_on_an_address_of_ipv6(tmp_path: Path) -> None:
    """As on loopback of IPv4: nobody needs a token, and only its own names are answered."""
    with (
        service_process(tmp_path / "own", host="::1") as service,
        httpx2.Client(base_url=service.url) as http,
    ):
        assert service.url.startswith("http://[::1]:")
        assert Instance(service.settings, "::1", urlsplit(service.url).port or 0, tmp_path).url == service.url
        assert http.get("/v1/sweeps").status_code == 200
        assert http.get("/v1/sweeps", headers={"Host": "evil.example"}).status_code == 421


def test_a_name_of_both_families_is_its_address_of_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    """`localhost` is both, and who reads `127.0.0.1` somewhere expects an answer there."""
    both = [(socket.AF_INET6, ("::1", 0, 0, 0)), (socket.AF_INET, ("127.0.0.1", 0))]
    found = [(family, socket.SOCK_STREAM, 6, "", address) for family, address in both]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with listen("localhost", 0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


def test_a_host_that_is_none_is_said(live: ServiceProcess) -> None:
    environment = {**os.environ, "CARE_SWEEP_HOME": str(live.settings.home)}
    command = [sys.executable, "-m", "service", "--host", "2001:db8::1"]  # of documentation, nobody's
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("the service cannot start on [2001:db8::1]:8484: ")


def test_it_ends_soon_with_streams_open_and_finishes_what_is_in_flight(own_process: ServiceProcess) -> None:
    limits = httpx2.Limits(max_connections=110)
    with (
        opened(own_process.settings) as store,
        httpx2.Client(base_url=own_process.url, limits=limits, timeout=60) as http,
        ThreadPoolExecutor(1) as pool,
        contextlib.ExitStack() as stack,
    ):
        sweep = Fabricator(store, own_process.settings.storage_uri).queued().id
        lines = []
        for _ in range(100):
            stream = stack.enter_context(http.stream("GET", f"/v1/sweeps/{sweep}/events"))
            lines.append(stream.iter_lines())
            assert next(lines[-1]).startswith("event: sweep")
        with writing(store.engine):  # what is submitted now has to wait
            in_flight = pool.submit(http.post, "/v1/sweeps", json=document())
            time.sleep(1)
            started = time.monotonic()
            own_process.process.send_signal(signal.SIGTERM)
            time.sleep(1)
            assert not in_flight.done()
        answer = in_flight.result()
        assert own_process.process.wait(timeout=30) in (0, -signal.SIGTERM)
        assert time.monotonic() - started < 15
        assert answer.status_code == 201
        assert store.sweep(answer.json()["id"]).name == "first look"
        for rest in lines:
            assert "retry: 1000" in list(rest)
    log = own_process.log_path.read_text()
    assert "Traceback" not in log
    assert "ERROR" not in log


def test_a_port_that_is_taken_is_said(live: ServiceProcess) -> None:
    port = str(urlsplit(live.url).port)
    environment = {**os.environ, "CARE_SWEEP_HOME": str(live.settings.home)}
    command = [sys.executable, "-m", "service", "--port", port]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 1
    assert f"127.0.0.1:{port}" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("framing", ["Content-Length: 99999999999", "Transfer-Encoding: chunked"])
def test_an_endless_body_is_cut_off(live: ServiceProcess, framing: str) -> None:
    """The refusal comes while the sender is still sending."""
    address = urlsplit(live.url)
    head = (
        f"POST /v1/sweeps HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{framing}\r\n\r\n"
    )
    with socket.create_connection((address.hostname, address.port or 0), timeout=20) as connection:
        connection.sendall(head.encode())
        if "chunked" in framing:
            chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
            for _ in range(17):  # of 64 KiB: one more than is read
                connection.sendall(chunk)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while data := connection.recv(65536):
                answer += data
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in answer


def test_a_stream_resumes_without_gap_or_repeat(live: ServiceProcess, live_fabricate: Fabricator) -> None:
    """A reader that is cut off again and again while a driver writes."""
    lease = live_fabricate.claimed(num_trials=40)

    def drive() -> None:
        for number in range(40):
            live_fabricate.trial(lease, number, 0.01 * number)
        lease.finish_sweep(SweepState.SUCCEEDED)

    driver = threading.Thread(target=drive)
    driver.start()
    told: list[dict[str, Any]] = []
    num_connections = 0
    with httpx2.Client(base_url=live.url, timeout=20) as http:
        while not told or told[-1]["data"].get("state") != SweepState.SUCCEEDED:
            num_connections += 1
            headers = {"Last-Event-ID": str(told[-1]["sequence"])} if told else {}
            with http.sse(f"/v1/sweeps/{lease.sweep_id}/events", headers=headers) as source:
                for event in _first(source, 7):
                    assert int(event.id) == json.loads(event.data)["sequence"]
                    told.append(json.loads(event.data))
    driver.join()
    stored = live_fabricate.store.events(lease.sweep_id, limit=10_000)
    assert [event["sequence"] for event in told] == [record.sequence for record in stored]
    assert [event["data"] for event in told] == [record.data for record in stored]
    assert num_connections > 10


def test_a_stream_ends_with_its_sweep(live: ServiceProcess, live_fabricate: Fabricator) -> None:
    lease = live_fabricate.claimed()
    threading.Timer(1.0, lease.finish_sweep, [SweepState.FAILED], {"reason": "a test"}).start()
    with (
        httpx2.Client(base_url=live.url, timeout=20) as http,
        http.sse(f"/v1/sweeps/{lease.sweep_id}/events") as s,
    ):
        states = [event.json()["data"]["state"] for event in s]  # type: ignore[index]
    assert states == ["QUEUED", "RUNNING", "FAILED"]


def _first(source: Any, count: int) -> Iterator[Any]:
    for _, event in zip(range(count), source, strict=False):
        yield event
