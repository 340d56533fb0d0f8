"""Does an instance come up, and stay up, whatever dies of it? With small servers in place of its parts."""

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from care_sweep import supervise
from care_sweep.errors import CareSweepError
from care_sweep.local_ray import LocalRay, RayPorts, free_port
from care_sweep.part import Part, answers
from care_sweep.settings import Settings
from care_sweep.supervise import Instance

_SERVER = """
import http.server, pathlib, subprocess, sys, time
port, token, gate = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        given = self.headers.get("Authorization", "Bearer ")
        self.send_response(200 if given == f"Bearer {token}" else 403)
        self.end_headers()

vital = subprocess.Popen(sys.argv[4:]) if sys.argv[4:] else None
while not gate.exists():
    time.sleep(0.01)
http.server.HTTPServer(("127.0.0.1", port), Answer).serve_forever()
"""


def _server(port: int, token: str = "", gate: Path = Path("/"), *vital: str) -> list[str]:
    """Answers on a port to who knows the token, once the gate is there; ends where the port is taken."""
    return [sys.executable, "-c", _SERVER, str(port), token, str(gate), *vital]


_SLEEPS = [sys.executable, "-c", "import time; time.sleep(600)"]


class _Planned:
    """An instance of such servers, and a gate that holds back its Ray."""

    def __init__(self, home: Path) -> None:
        home.mkdir()
        (home / "token").write_text(home.name)
        (home / "raylet").symlink_to("/usr/bin/sleep")
        self.gate, port = home / "gate", free_port()
        self.gate.touch()
        settings = Settings.from_environment({"CARE_SWEEP_HOME": str(home)})
        self.instance = Instance(settings, "0.0.0.0", port, home)  # noqa: S104
        self.instance.service.command = _server(port)
        self.instance.runner.command = _SLEEPS
        self.instance.plan_ray(home / "token", home / "scratch", self._ray)
        assert self.instance.ray is not None
        self.ray: LocalRay = self.instance.ray

    def _ray(self, ports: RayPorts) -> list[str]:
        home = self.gate.parent
        return _server(ports.dashboard, home.name, self.gate, str(home / "raylet"), "600")

    def choose_port(self, port: int) -> None:
        self.ray.ports = replace(self.ray.ports, dashboard=port)
        self.ray.command = self._ray(self.ray.ports)

    @contextmanager
    def started(self) -> Iterator[Instance]:
        try:
            self.instance.start()
            yield self.instance
        finally:
            self.instance.stop()

    def tend_until(self, condition: Callable[[], object]) -> str:
        """All that was said until then."""
        said, deadline = [], time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, said
            said += self.instance.tend()
            time.sleep(0.02)
        return "\n".join(said)

    def kill(self, part: Part) -> str:
        """What was said until it was started again."""
        before = _pid(part)
        os.kill(before, signal.SIGKILL)
        return self.tend_until(lambda: part.process is not None and _pid(part) != before)


def _pid(part: Part) -> int:
    assert part.process is not None
    return part.process.pid


@pytest.fixture
def planned(tmp_path: Path) -> _Planned:
    return _Planned(tmp_path / "home")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("localhost", "http://localhost:80"),
        ("::1", "http://[::1]:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),  # noqa: S104
        ("::", "http://[::1]:80"),
    ],
)
def test_where_the_service_is_found(tmp_path: Path, host: str, url: str) -> None:
    assert Instance(Settings.from_environment({}), host, 80, tmp_path).url == url


def test_two_that_start_at_once_at_the_same_port_both_come_up(tmp_path: Path) -> None:
    first, second = _Planned(tmp_path / "first"), _Planned(tmp_path / "second")
    first.choose_port(free_port())
    second.choose_port(first.ray.ports.dashboard)
    with first.started() as one, second.started() as other:
        assert one.dashboard_url != other.dashboard_url
        assert (first.ray.is_up, second.ray.is_up) == (True, True)


def test_each_part_has_what_it_needs_and_no_more(planned: _Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials inherit what Ray has; a client's token is nobody's here but the client's."""
    client = {"CARE_SWEEP_TOKEN": "cs_secret", "CARE_SWEEP_TOKEN_PATH": "/a/token"}
    database = {"CARE_SWEEP_DATABASE_URL": "postgresql://me:hunter2@db/care", "PGPASSWORD": "hunter3"}
    storage = {"AWS_ACCESS_KEY_ID": "a-key"}
    for name, value in {**client, **database, **storage}.items():
        monkeypatch.setenv(name, value)
    again = _Planned(planned.gate.parent / "again")
    with again.started() as instance:
        found = {
            part.name: Path(f"/proc/{_pid(part)}/environ").read_bytes().decode().split("\0")
            for part in (instance.service, instance.runner, again.ray)
        }
    given = {
        name: {key for key in (*client, *database, *storage) if any(e.startswith(f"{key}=") for e in entries)}
        for name, entries in found.items()
    }
    assert given == {
        "service": {*database, *storage},
        "runner": {*database, *storage},
        "ray": set(storage),
    }


@pytest.mark.parametrize("own", [None, "/elsewhere"])
def test_temporary_files_of_ray_go_with_its_scratch_unless_the_user_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str | None
) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    if own:
        monkeypatch.setenv("TMPDIR", own)
    planned = _Planned(tmp_path / "home")
    with planned.started():
        environment = Path(f"/proc/{_pid(planned.ray)}/environ").read_text().split("\0")
    assert f"TMPDIR={own or tmp_path / 'home' / 'scratch'}" in environment
    assert f"TORCHINDUCTOR_CACHE_DIR={tmp_path / 'home' / 'torchinductor'}" in environment, "it is kept"


@pytest.mark.parametrize("requires_tokens", [True, False])
def test_serve_says_how_a_token_is_made_where_one_is_wanted(
    requires_tokens: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    where: Any = SimpleNamespace(
        url="http://here", dashboard_url=None, token_path=None, log_directory="/logs"
    )
    where.requires_tokens = requires_tokens
    supervise._say_where(where, as_json=False)
    said = capsys.readouterr().out
    assert ("care-sweep token create NAME --scope submit" in said) == requires_tokens
    assert ("http://here/docs" in said) == (not requires_tokens)


def test_what_speaks_no_http_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def speak() -> None:
            connection, _ = server.accept()
            connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
            connection.close()

        speaking = threading.Thread(target=speak)
        speaking.start()
        assert not answers(f"http://127.0.0.1:{server.getsockname()[1]}/")
        speaking.join()


def test_a_service_that_is_killed_comes_back_each_time(planned: _Planned) -> None:
    with planned.started() as instance:
        runner = _pid(instance.runner)
        for _ in range(3):
            assert "the service ended by itself with status -9" in planned.kill(instance.service)
        assert _pid(instance.runner) == runner


def test_ray_that_lost_a_process_is_started_again_where_it_was(planned: _Planned) -> None:
    with planned.started() as instance:
        instance.tend()
        runner, ray, dashboard = _pid(instance.runner), _pid(planned.ray), planned.ray.dashboard_url
        (raylet,) = Path(f"/proc/{ray}/task/{ray}/children").read_text().split()
        os.kill(int(raylet), signal.SIGKILL)
        said = planned.tend_until(lambda: planned.ray.is_up and _pid(planned.ray) != ray)
        assert "the ray lost a process and is started again" in said
        assert _pid(instance.runner) != runner, "its connection died with Ray"
        assert planned.ray.dashboard_url == dashboard


def test_a_process_that_ray_loses_before_anybody_saw_it_is_noticed(planned: _Planned) -> None:
    planned.gate.unlink()
    planned.ray.command[-1] = "0"  # seconds that its raylet lives
    before = planned.ray.ports
    try:
        assert "the ray lost a process" in planned.tend_until(lambda: planned.ray.ports != before)
    finally:
        planned.instance.stop()


def test_what_dies_while_ray_starts_is_started_again(planned: _Planned) -> None:
    with planned.started() as instance:
        planned.gate.unlink()
        runner = _pid(instance.runner)
        planned.kill(planned.ray)
        planned.tend_until(lambda: instance.runner.process)
        assert _pid(instance.runner) != runner, "its connection died with Ray"
        planned.kill(instance.service)
        planned.kill(instance.runner)
        planned.kill(planned.ray)
        assert not planned.ray.is_up
        planned.gate.touch()
        planned.tend_until(lambda: planned.ray.is_up and instance.runner.process)


def test_a_part_that_cannot_start_is_told_with_its_last_words(planned: _Planned) -> None:
    planned.instance.service.command = [sys.executable, "-c", "raise SystemExit('no such database')"]
    with pytest.raises(CareSweepError, match=r"the service did not start; .*service.log ends with:\nno such"):
        planned.instance.start()
    planned.instance.stop()


def test_ray_that_cannot_start_anywhere_is_told(planned: _Planned) -> None:
    planned.gate.parent.joinpath("raylet").unlink()
    with pytest.raises(CareSweepError, match="the ray did not start"):
        planned.instance.start()
    planned.instance.stop()
    assert planned.ray.log.read_text().count("Traceback") == 3, "at three places"


def test_a_part_that_is_killed_at_its_first_start_is_started_again(planned: _Planned) -> None:
    service = planned.instance.service
    once = "import os, pathlib; p = pathlib.Path(os.environ['CARE_SWEEP_HOME'], 'once')\n"
    once += "if not p.exists(): p.touch(); os.kill(os.getpid(), 9)\n"
    service.command[2] = once + service.command[2]
    with planned.started():
        assert service.status == -signal.SIGKILL


def test_a_part_waits_longer_each_time_that_it_dies_early_and_never_gives_up(tmp_path: Path) -> None:
    now = 100.0
    part = Part("service", ["false"], tmp_path / "log", clock=lambda: now)

    def pause_after(seconds: float) -> float:
        nonlocal now
        part.start({})
        assert part.process is not None
        part.process.wait()
        now += seconds
        found = re.search(r"is started again(?: in (\S+) s)?; see", part.bury())
        assert found is not None
        return float(found[1] or 0)

    assert [pause_after(1) for _ in range(4)] == [0.5, 1, 2, 2]
    assert not part.is_due
    now += 2
    assert part.is_due
    assert pause_after(11) == 0
    assert part.is_due
    assert pause_after(1) == 0.5


def test_what_has_died_is_said_with_its_last_line(tmp_path: Path) -> None:
    part = Part("runner", ["sh", "-c", "echo first; echo it is open; exit 2"], tmp_path / "log")
    part.start({})
    assert part.process is not None
    part.process.wait()
    assert part.bury().endswith(
        f"with status 2 and is started again in 0.5 s; see {part.log}, which ends with: it is open"
    )
