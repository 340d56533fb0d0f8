"""A driver that waits for a sweep begins at once, and one that does not is started."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conducting import Clock

from care_sweep.run.starting import Order, Starter

QUIET_SECONDS = 5.0
DRIVER = """
import os, sys
from care_sweep.run.starting import await_order
print("waits", flush=True)
order = await_order()
if order is None:
    sys.exit(7)
print("out", order.sweep_id, order.fencing_token, flush=True)
os.write(2, b"err")
"""


class Scene:
    """A starter on a clock of its own."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.folder = folder
        self.starter = Starter([sys.executable, "-c", DRIVER], self.clock)

    def start(self, sweep_id: str) -> "subprocess.Popen[bytes]":
        return self.starter.start(self.order(sweep_id))

    def order(self, sweep_id: str) -> Order:
        return Order(sweep_id, 3, str(self.folder / sweep_id), os.getpid())

    def log(self, sweep_id: str) -> str:
        return (self.folder / sweep_id).read_text()

    def waiting(self) -> "subprocess.Popen[bytes]":
        """The process that waits, started if need be."""
        self.clock.now += QUIET_SECONDS
        self.starter.prepare()
        assert self.starter._waiting is not None
        return self.starter._waiting


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.starter.close()


def test_who_waits_is_told_the_sweep_and_logs_to_its_file(scene: Scene) -> None:
    """It adds to what an earlier driver has left there."""
    (scene.folder / "one").write_text("earlier\n")
    waiting = scene.waiting()
    process = scene.start("one")
    assert process.pid == waiting.pid
    assert process.wait(30) == 0
    assert scene.log("one") == "earlier\nout one 3\nerr", "and nothing of the time before"


def test_one_that_is_started_logs_to_the_sweeps_file_from_the_first(scene: Scene) -> None:
    """It may die before it can read anything, and the user reads why."""
    assert scene.start("one").wait(30) == 0
    assert scene.log("one") == "waits\nout one 3\nerr"


def test_a_log_may_have_any_name_that_a_file_may_have(scene: Scene) -> None:
    name = os.fsdecode(b"caf\xe9 \n")
    scene.waiting()
    assert scene.start(name).wait(30) == 0
    assert (scene.folder / name).stat().st_size > 0


def test_each_sweep_has_a_process_of_its_own(scene: Scene) -> None:
    scene.waiting()
    first, second = scene.start("one"), scene.start("two")
    assert (first.wait(30), second.wait(30)) == (0, 0)
    assert (scene.log("one"), scene.log("two")) == ("out one 3\nerr", "waits\nout two 3\nerr")
    assert first.pid != second.pid


def test_none_waits_until_starts_have_been_few(scene: Scene) -> None:
    """For five seconds the processors are left to those that began."""
    scene.start("one").wait(30)
    for _ in range(2):
        scene.clock.now += QUIET_SECONDS - 1
        scene.starter.prepare()
        assert scene.starter._waiting is None
        scene.start("two").wait(30)
    assert scene.waiting() is scene.waiting(), "one is enough"


def test_one_that_died_while_it_waited_is_told_of_and_not_replaced_before_the_next_sweep(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = scene.waiting()
    waiting.kill()
    waiting.wait()
    for _ in range(2):
        scene.clock.now += 100
        scene.starter.prepare()
    assert scene.starter._waiting is None, "it may die of itself each time"
    assert [record.getMessage() for record in caplog.records] == [
        "the driver that waited ended with status -9; the next sweep starts its own"
    ]
    assert scene.start("one").wait(30) == 0
    assert scene.waiting().poll() is None


def test_one_that_died_unseen_costs_no_sweep(scene: Scene) -> None:
    waiting = scene.waiting()
    waiting.kill()
    waiting.wait()
    process = scene.start("one")
    assert process.pid != waiting.pid
    assert process.wait(30) == 0
    assert scene.log("one") == "waits\nout one 3\nerr"


def test_closing_ends_who_waits(scene: Scene) -> None:
    waiting = scene.waiting()
    scene.starter.close()
    assert waiting.returncode == -signal.SIGKILL
    scene.starter.close()


def test_who_waits_ends_with_its_runner(tmp_path: Path) -> None:
    """Even one that is killed, and tells nobody."""
    runner = f"""
import sys, time
from care_sweep.run.starting import Starter
starter = Starter([sys.executable, "-c", {DRIVER!r}], lambda: 0.0)
starter._quiet_since = -100.0
starter.prepare()
print(starter._waiting.pid, flush=True)
time.sleep(60)
"""
    output = tmp_path / "output"
    with output.open("w") as file:
        process = subprocess.Popen([sys.executable, "-c", runner], stdout=file)
    try:
        lines: list[str] = []
        deadline = time.monotonic() + 30
        while len(lines) < 2 and time.monotonic() < deadline:
            lines = output.read_text().splitlines()
            time.sleep(0.05)
        assert "waits" in lines
        (waiting,) = (int(line) for line in lines if line != "waits")
        os.kill(waiting, 0)  # it is there
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 30
    while _lives(waiting) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _lives(waiting)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.7, 3.0])
def test_a_driver_ends_quietly_with_its_runner_though_it_still_loads(seconds: float) -> None:
    command = [sys.executable, "-m", "care_sweep.run.driver"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as driver:
        time.sleep(seconds)
        output, _ = driver.communicate(timeout=60)
    assert (driver.returncode, output) == (0, b"")
