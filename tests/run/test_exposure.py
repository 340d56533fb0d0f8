"""A Ray cluster that lets anybody in is refused, and a local one lets nobody in."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from care_sweep.errors import ClusterExposed
from care_sweep.local_ray import RayPorts, ray_command, ray_environment, ray_scratch, ray_token
from care_sweep.run.exposure import refuse_open_cluster, refuse_open_dashboard, refuse_readable_token
from care_sweep.supervise import Instance


@contextmanager
def _control_service(*, wants_token: bool) -> Iterator[str]:
    def answer(request: bytes, context: Any) -> bytes:
        if wants_token:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return b""

    handler = grpc.method_handlers_generic_handler(
        "ray.rpc.NodeInfoGcsService", {"GetClusterId": grpc.unary_unary_rpc_method_handler(answer)}
    )
    server = grpc.server(ThreadPoolExecutor(1), handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


@contextmanager
def _dashboard(status: int) -> Iterator[str]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/api/jobs/" else 404)
            self.send_header("Location", "/")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_control_service_that_answers_without_a_token_is_refused() -> None:
    with _control_service(wants_token=True) as address:
        refuse_open_cluster(address)
    with _control_service(wants_token=False) as address, pytest.raises(ClusterExposed) as refused:
        refuse_open_cluster(address)
    assert address in str(refused.value)
    assert "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH" in str(refused.value)


def test_who_cannot_tell_whether_a_cluster_is_open_does_not_use_it() -> None:
    with _control_service(wants_token=True) as address:
        server = grpc.server(ThreadPoolExecutor(1))  # of something else
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with pytest.raises(ConnectionError, match="does not say whether it wants a token"):
            refuse_open_cluster(f"{address.partition(':')[0]}:{port}")
        server.stop(None)


@pytest.mark.parametrize("status", [302, 401, 403, 404, 500])
def test_a_dashboard_that_asks_who_one_is_is_no_open_one(status: int) -> None:
    with _dashboard(status) as address:
        refuse_open_dashboard(address)
    refuse_open_dashboard(address)  # it has gone


def test_a_dashboard_that_shows_its_jobs_to_anybody_is_refused() -> None:
    with _dashboard(200) as address, pytest.raises(ClusterExposed, match=address):
        refuse_open_dashboard(address)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o602, 0o620])
def test_a_token_that_others_can_read_or_change_is_refused(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "auth_token"
    path.write_text("secret")
    path.chmod(mode)
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}
    with pytest.raises(ClusterExposed, match=rf"mode {mode:o}\): chmod 600 {path}"):
        refuse_readable_token(environment)
    path.chmod(0o600)
    refuse_readable_token(environment)


def test_the_token_that_ray_makes_by_itself_is_looked_at_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    (tmp_path / ".ray" / "auth_token").chmod(0o644)  # as Ray does
    with pytest.raises(ClusterExposed, match="auth_token"):
        refuse_readable_token({"RAY_AUTH_MODE": "token"})
    refuse_readable_token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of the environment"})
    refuse_readable_token({})


# --- a real one -------------------------------------------------------------------------------------------

_GRPC = {
    "GCS": "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "its key-value store": "/ray.rpc.InternalKVGcsService/InternalKVKeys",
    "raylet": "/ray.rpc.NodeManagerService/GetSystemConfig",
    "object manager": "/ray.rpc.ObjectManagerService/Pull",
    "agent": "/ray.rpc.ReporterService/GetTraceback",
    "client server": "/ray.rpc.RayletDriver/Init",
    "worker": "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
}
_HTTP = ("/api/version", "/api/jobs/", "/nodes", "/get_or_create_runtime_env", "/api/job_agent/jobs/")


def _listening(root: int) -> Mapping[int, str]:
    """Ports on which a process and those below it listen, with the address."""
    processes = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    found = {}
    for process in processes:
        for connection in process.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN:
                found[connection.laddr.port] = connection.laddr.ip
    return found


def _called(port: int, method: str) -> grpc.StatusCode:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary(method)(b"", timeout=10)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


def _got(port: int, path: str) -> tuple[int, bytes]:
    answer = b""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    line, _, rest = answer.partition(b"\r\n")
    return (int(line.split()[1]), rest) if line.startswith(b"HTTP/") else (0, b"")


def _is_loopback(address: str) -> bool:
    ip = ip_address(address)
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return ip.is_loopback


@pytest.mark.ray
@pytest.mark.slow
def test_a_local_ray_listens_on_loopback_alone_and_tells_nobody_anything(
    instance: Instance,
) -> None:
    assert instance.ray is not None
    assert instance.ray.process is not None
    unseen, deadline = set(_GRPC), time.monotonic() + 60
    while unseen:  # agents and workers come up after the rest
        assert time.monotonic() < deadline, f"nobody was found to want a token: {unseen}"
        listening = _listening(instance.ray.process.pid)
        assert {ip for ip in listening.values() if not _is_loopback(ip)} == set()
        for port in listening:
            codes = {name: _called(port, method) for name, method in _GRPC.items()}
            assert grpc.StatusCode.OK not in codes.values(), (port, codes)
            unseen -= {name for name, code in codes.items() if code is grpc.StatusCode.UNAUTHENTICATED}
            answers = [_got(port, path) for path in _HTTP]
            is_metrics = all(b"# HELP" in body for _, body in answers)  # figures, and only those
            assert is_metrics or {status for status, _ in answers} <= {0, 401, 404}, (port, answers)
    made_by_ray = Path.home() / ".ray" / "auth_token"
    began = psutil.Process(instance.ray.process.pid).create_time()
    assert not made_by_ray.exists() or made_by_ray.stat().st_mtime < began


@pytest.mark.ray
@pytest.mark.slow
def test_a_runner_refuses_a_cluster_that_is_open(tmp_path: Path) -> None:
    ports = RayPorts.free(dashboard=0)
    environment = {**os.environ, **ray_environment(ray_token(tmp_path)), "CARE_SWEEP_HOME": str(tmp_path)}
    is_open = {**environment, "RAY_AUTH_MODE": "disabled"}
    with ray_scratch(tmp_path) as scratch, (tmp_path / "ray.log").open("wb") as log:
        command = ray_command(ports, scratch, 1, 0)
        ray = subprocess.Popen(command, env=is_open, stdout=log, stderr=log)
        try:
            _see_refused(ports, environment)
        finally:
            ray.terminate()
            ray.wait(60)


def _see_refused(ports: RayPorts, environment: Mapping[str, str]) -> None:
    runner = subprocess.run(
        [sys.executable, "-m", "care_sweep.run.runner"],
        env={**environment, "RAY_ADDRESS": f"127.0.0.1:{ports.gcs}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert runner.returncode == 2
    assert f"Ray at 127.0.0.1:{ports.gcs} answers without a token: start every node" in runner.stderr
    with pytest.raises(ClusterExposed, match="lets anybody submit jobs"):
        refuse_open_dashboard(f"127.0.0.1:{ports.dashboard}")
