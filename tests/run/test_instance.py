"""An instance as a person has it: `care-sweep serve` and `demo`, ended politely, rudely, started again."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.few_images import cut_few_images
from care_sweep.client import Client
from care_sweep.local_ray import RayPorts, free_port, ray_command, ray_scratch, ray_token
from care_sweep.settings import Settings
from care_sweep.supervise import Instance

pytestmark = [pytest.mark.ray, pytest.mark.slow]


class _Command:
    """`care-sweep` with a home of its own, and what it has printed so far."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self.home = home
        program = Path(sys.executable).parent / "care-sweep"
        environment = {**os.environ, "CARE_SWEEP_HOME": str(home), "COLUMNS": "200"}
        self.process = subprocess.Popen(
            [program, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said = ""

    def read_until(self, pattern: str) -> str:
        """What the first group of the pattern matched in a line that the command printed."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if found := re.search(pattern, line):
                return found.group(1)
        raise AssertionError(f"ended without {pattern!r}:\n{self.said}")

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=60)
        self.said += rest
        return self.process.returncode

    def processes(self) -> list[int]:
        """Every process that carries this home in its environment, Ray's own included."""
        marker = f"CARE_SWEEP_HOME={self.home}\0".encode()
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                if marker in environ.read_bytes():
                    found.append(int(environ.parent.name))
            except OSError:
                continue  # it has ended, or is another's
        return found


def _within(seconds: float, condition: Callable[[], Any]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _serve(home: Path) -> tuple[_Command, str]:
    command = _Command(home, "serve", "--port", "0", "--num-cpus", "1")
    url = command.read_until(r"service\s+(http\S+)")
    command.read_until("(Ctrl-C)")
    return command, url


def test_a_sweep_goes_on_after_everything_was_killed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    dataset = cut_few_images(home / "data" / "few")
    space = {
        "parameters": {"temperature": {"type": "float", "low": 0.05, "high": 1}},
        "fixed": {
            "dataset": dataset,
            "encoder": "resnet_tiny",
            "epochs": 40,
            "batch_size": 32,
            "num_splits": 4,
            "probe_epochs": 2,
        },
    }
    first, url = _serve(home)
    with Client(url) as client:
        document = {"name": "killed", "space": space, "num_trials": 2, "early_stopping": "none"}
        sweep_id = client.submit(document)["id"]
        assert _within(60, lambda: list(client.trials(sweep_id)) and client.measurements(sweep_id, 0))
    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    assert _within(30, lambda: not first.processes()), "the kernel told its children"

    second, url = _serve(home)
    with Client(url) as client:
        ended = client.wait(sweep_id, timeout=120)
        assert (ended["state"], ended["trial_counts"]) == ("SUCCEEDED", {"COMPLETE": 2})
        resumed = next(client.trials(sweep_id))
        assert (resumed["number"], resumed["attempt"]) == (0, 2)
        epochs = [measurement["epoch"] for measurement in client.measurements(sweep_id, 0)]
        assert epochs == list(range(1, 41))
        attempts = {measurement["attempt"] for measurement in client.measurements(sweep_id, 0)}
        assert attempts == {1, 2}
        assert "goes on from" in client.logs(sweep_id, 0, attempt=2), "it did not begin anew"
    assert second.end(signal.SIGINT) == 0
    assert not second.processes(), "serve waits for all that it started"
    assert ((home / "ray-token").stat().st_mode & 0o777) == 0o600


def test_ctrl_c_ends_the_demo_and_all_that_it_started(tmp_path: Path) -> None:
    demo = _Command(tmp_path / "home", "demo", "--output", str(tmp_path / "out"))
    demo.read_until("(dashboard)")
    assert demo.end(signal.SIGINT) == 130
    assert "interrupted" in demo.said
    assert "Traceback" not in demo.said
    assert not demo.processes()


def test_ray_comes_up_elsewhere_where_another_took_its_port_meanwhile(tmp_path: Path) -> None:
    settings = Settings.from_environment({"CARE_SWEEP_HOME": str(tmp_path)})
    instance = Instance(settings, "127.0.0.1", free_port(), tmp_path)
    tried: list[RayPorts] = []
    with socket.create_server(("127.0.0.1", 0)) as taken, ray_scratch(tmp_path) as scratch:

        def command(ports: RayPorts) -> list[str]:
            tried.append(ports if tried else replace(ports, dashboard=taken.getsockname()[1]))
            return ray_command(tried[-1], scratch, 1, None)

        instance.plan_ray(ray_token(tmp_path), scratch, command)
        try:
            instance.start()
        finally:
            instance.stop()
    assert len(tried) == 2
    assert instance.dashboard_url == f"http://127.0.0.1:{tried[-1].dashboard}"


def test_a_serve_that_is_ended_at_any_instant_of_its_start_leaves_nothing_behind(tmp_path: Path) -> None:
    for seconds in (0.2, 1.0, 3.0, 6.0):
        command = _Command(tmp_path / "home", "serve", "--port", "0", "--num-cpus", "1")
        time.sleep(seconds)
        assert command.end(signal.SIGTERM) in (0, -signal.SIGTERM), command.said
        assert "Traceback" not in command.said
        assert _within(10, lambda ended=command: not ended.processes())
    assert not (tmp_path / "home" / "ray-scratch").is_symlink()
