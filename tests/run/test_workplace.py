"""An attempt in a folder and beside an object store: durable before it reports, the same to the bit."""

import hashlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.few_images import cut_few_images
from care_sweep.errors import NotFound, StorageError
from care_sweep.run import worker
from care_sweep.run.versions import own_version
from care_sweep.run.workplace import workplace
from care_sweep.spec import Measurement, Place, TrialConfig
from care_sweep.storage import Storage, open_storage

TRIAL = "sweeps/0123456789ab/trials/00003"
EPOCHS = 4
PLACE = Place(actor_id="a1", node_id="b2", log_name=None)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return cut_few_images(tmp_path_factory.mktemp("data") / "few", num_classes=2)


@pytest.fixture
def storage(storage_uri: str) -> Storage:
    return open_storage(storage_uri)


class _Driver:
    """Hears what a worker reports and ends it after an epoch as Ray does, by SystemExit inside the report."""

    def __init__(self, uri: str, dataset: str, scratch: Path, patch: pytest.MonkeyPatch) -> None:
        self.storage, self.dataset, self.scratch, self.patch = open_storage(uri), dataset, scratch, patch
        self.heard: list[Measurement] = []
        self.said: list[dict[str, str]] = []

    def run(self, attempt: int, *, last_epoch: int = 0, stop_after: int = EPOCHS + 1) -> None:
        def report(said: dict[str, str]) -> None:
            if "place" in said:
                return
            self.said.append(said)
            if "measurement" in said:
                measurement = Measurement.model_validate_json(said["measurement"])
                self.heard.append(measurement)
                self._is_durable(measurement, attempt)
                if measurement.epoch >= stop_after:
                    raise SystemExit

        self.patch.setattr(worker.tune, "report", report)
        self.patch.setattr(worker, "own_place", lambda: PLACE)
        config = TrialConfig(
            dataset=self.dataset,
            encoder="resnet_tiny",
            epochs=EPOCHS,
            batch_size=32,
            num_splits=4,
            probe_epochs=2,
            knn_neighbors=5,
        )
        order: dict[str, Any] = {
            "number": 3,
            "attempt": attempt,
            "config": config.model_dump(),
            "storage_uri": self.storage.uri,
            "prefix": TRIAL,
            "scratch_directory": str(self.scratch / f"node-{attempt}"),
            "last_epoch": last_epoch,
            "gpus": 0.0,
            "download_directory": "unused",
            "data_roots": [str(Path(self.dataset.partition(":")[2]).parent)],
            "data_uris": [],
            "version": own_version(),
        }
        try:
            worker.run_attempt(order)
        except SystemExit:
            assert self.heard[-1].epoch == stop_after

    def _is_durable(self, measurement: Measurement, attempt: int) -> None:
        """At the moment of the report, seen from elsewhere."""
        elsewhere = open_storage(self.storage.uri)
        state = elsewhere.head(f"{TRIAL}/attempt-{attempt}/state-{measurement.epoch:05d}.pt")
        assert state.size_bytes > 1000
        if measurement.checkpoint is not None:
            content = b"".join(elsewhere.read(f"{TRIAL}/{measurement.checkpoint.name}"))
            assert hashlib.sha256(content).hexdigest() == measurement.checkpoint.sha256

    def names(self) -> list[str]:
        return sorted(one.key.removeprefix(f"{TRIAL}/") for one in self.storage.list(TRIAL))


_Epoch = tuple[int, dict[str, float]]
"""An epoch and its metrics."""


def _metrics(heard: list[Measurement]) -> list[_Epoch]:
    return [(measurement.epoch, measurement.metrics) for measurement in heard]


@pytest.fixture
def uninterrupted(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[_Epoch]:
    """What the trial measures in one attempt."""
    driver = _Driver(str(tmp_path / "whole"), dataset, tmp_path, monkeypatch)
    driver.run(attempt=1)
    return _metrics(driver.heard)


def test_an_attempt_goes_on_elsewhere_to_the_bit(
    uninterrupted: list[_Epoch],
    storage_uri: str,
    dataset: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = _Driver(storage_uri, dataset, tmp_path / "scratch", monkeypatch)
    driver.run(attempt=1, stop_after=3)
    assert {"attempt-1/log.txt", "attempt-1/state-00002.pt", "attempt-1/state-00003.pt"} <= set(
        driver.names()
    )
    assert "attempt-1/state-00001.pt" in driver.names(), "the report of epoch 3 did not return"
    del driver.heard[2:]  # the driver died before it stored epoch 3

    driver.run(attempt=2, last_epoch=2)
    assert driver.names() == [
        "attempt-1/log.txt",
        "attempt-1/state-00001.pt",
        "attempt-1/state-00002.pt",
        "attempt-2/checkpoint.tar",
        "attempt-2/log.txt",
        "attempt-2/state-00003.pt",
        "attempt-2/state-00004.pt",
    ]
    assert _metrics(driver.heard) == uninterrupted
    assert driver.heard[-1].checkpoint is not None
    assert driver.heard[-1].checkpoint.name == "attempt-2/checkpoint.tar"
    log = b"".join(driver.storage.read(f"{TRIAL}/attempt-2/log.txt")).decode()
    assert "goes on from" in log
    assert f"epoch {EPOCHS}" in log, "the whole log is there at the end"
    assert not any((tmp_path / "scratch").glob("*/attempt-*")), "nothing stays in scratch"


def test_a_damaged_state_is_no_end(
    uninterrupted: list[_Epoch],
    storage_uri: str,
    dataset: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = _Driver(storage_uri, dataset, tmp_path / "scratch", monkeypatch)
    driver.run(attempt=1, stop_after=2)
    key = f"{TRIAL}/attempt-1/state-00002.pt"
    state = bytearray(b"".join(driver.storage.read(key)))
    state[-100] ^= 1
    driver.storage.put(key, bytes(state), overwrite=True)
    driver.heard.clear()
    driver.run(attempt=2, last_epoch=2)
    assert _metrics(driver.heard) == uninterrupted[1:]
    log = b"".join(driver.storage.read(f"{TRIAL}/attempt-2/log.txt")).decode()
    assert re.search(r"state-00002.*its SHA-256 does not fit.*\n.*goes on from .*state-00001", log)
    assert "begins anew" not in log


def test_of_many_attempts_the_latest_before_this_left_the_state(storage: Storage, tmp_path: Path) -> None:
    """Of the latest epoch that was reported, or of the one before: the last may be damaged."""
    for attempt, epoch in ((2, 3), (9, 3), (10, 3), (10, 2), (10, 4), (12, 3)):
        storage.put(f"{TRIAL}/attempt-{attempt}/state-{epoch:05d}.pt", f"{attempt} {epoch}".encode())
    with workplace(storage, TRIAL, 11, tmp_path / "scratch") as place:
        assert [state.read_text() for state in place.training_states(3)] == ["10 3", "10 2"]
    left = [one.key.split("/")[-2] for one in storage.list(TRIAL) if one.key.endswith(".pt")]
    assert sorted(left) == ["attempt-10", "attempt-10", "attempt-12"], "12 may run, this one be given up"


def test_an_attempt_that_was_interrupted_while_it_retraced_is_gone_on_from(
    storage: Storage, tmp_path: Path
) -> None:
    """Though those that it could not read are of later epochs."""
    for epoch in (79, 80):
        storage.put(f"{TRIAL}/attempt-1/state-{epoch:05d}.pt", b"unreadable")
    storage.put(f"{TRIAL}/attempt-2/state-00040.pt", b"retraced")
    with workplace(storage, TRIAL, 3, tmp_path / "scratch") as place:
        assert [state.read_text() for state in place.training_states(80)] == ["retraced", "unreadable"]


def test_an_object_store_that_does_not_answer_interrupts(
    bucket: str, dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    driver = _Driver(f"{bucket}/away", dataset, tmp_path, monkeypatch)
    driver.run(attempt=1)
    (said,) = driver.said
    assert said["interruption"].startswith(
        "s3://sweeps/away/sweeps/0123456789ab/trials/00003: the object store"
    )
    assert "goes on once" in said["interruption"]


def test_an_object_store_that_goes_away_interrupts_before_anything_is_reported(
    bucket: str, dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = _Driver(f"{bucket}/going", dataset, tmp_path, monkeypatch)
    driver.run(attempt=1, stop_after=1)
    training_states = worker.Workplace.training_states

    def then_away(place: worker.Workplace, epoch: int) -> Iterator[Path]:
        states = list(training_states(place, epoch))
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        place.storage = open_storage(place.storage.uri)
        return iter(states)

    monkeypatch.setattr(worker.Workplace, "training_states", then_away)
    driver.run(attempt=2, last_epoch=1)
    assert [measurement.epoch for measurement in driver.heard] == [1]
    assert "interruption" in driver.said[-1]


def _written(storage: Storage, text: str) -> bool:
    try:
        return b"".join(storage.read(f"{TRIAL}/attempt-1/log.txt")).decode() == text
    except NotFound:
        return False


def _until_written(storage: Storage, text: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        with suppress(StorageError):  # it is replaced while it is read: ask again, as that says
            if _written(storage, text):
                return
        assert time.monotonic() < deadline, text
        time.sleep(0.05)


def test_a_log_can_be_read_while_the_attempt_runs(storage: Storage, tmp_path: Path) -> None:
    """Without a report: an epoch may take hours."""
    with workplace(storage, TRIAL, 1, tmp_path / "scratch") as place:
        log = place.directory / "log.txt"
        for text in ("begins\n", "begins\ngoes on\n"):
            log.write_text(text)
            _until_written(storage, text)
        log.write_text("begins\ngoes on\nends\n")
    assert _written(storage, "begins\ngoes on\nends\n")


def test_a_log_goes_on_after_an_object_store_was_away(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    storage = open_storage(f"{bucket}/away-and-back")
    put, is_away = type(storage).put, threading.Event()

    def refused(*_: Any, **__: Any) -> None:
        is_away.set()
        raise StorageError("away")

    with workplace(storage, TRIAL, 1, tmp_path / "scratch") as place:
        monkeypatch.setattr(type(storage), "put", refused)
        (place.directory / "log.txt").write_text("begins\n")
        assert is_away.wait(30)
        monkeypatch.setattr(type(storage), "put", put)
        _until_written(storage, "begins\n")
        monkeypatch.setattr(type(storage), "put", refused)
        (place.directory / "log.txt").write_text("begins\nends\n")
    assert "attempt-1 could not be uploaded: away" in caplog.text


HOLDER = """
import sys, time
from pathlib import Path
from care_sweep.run.workplace import workplace
from care_sweep.storage import open_storage
with workplace(open_storage(sys.argv[1]), "a", 1, Path(sys.argv[2])) as place:
    (place.directory / "state-00001.pt").touch()
    print(place.directory, flush=True)
    time.sleep(600)
"""


def test_scratch_of_a_killed_worker_goes_and_that_of_a_live_one_stays(bucket: str, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    command = [sys.executable, "-c", HOLDER, f"{bucket}/holders", str(scratch)]
    holders = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    places = [Path(holder.stdout.readline().strip()) for holder in holders if holder.stdout is not None]
    holders[0].kill()
    holders[0].communicate()
    assert all(place.is_dir() for place in places)
    with workplace(open_storage(f"{bucket}/holders"), "a", 2, scratch) as place:
        assert set(scratch.glob("attempt-*")) == {places[1], place.directory}
    assert set(scratch.glob("attempt-*")) == {places[1]}
    holders[1].kill()
    holders[1].communicate()


def test_a_disk_that_is_full_interrupts(
    storage_uri: str, dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device", "/somewhere/state")

    monkeypatch.setattr("care_sweep.storage.durable.os.fsync", fail)
    driver = _Driver(storage_uri, dataset, tmp_path, monkeypatch)
    driver.run(attempt=1)
    (said,) = driver.said
    assert said["interruption"].startswith("/somewhere/state: No space left on device; the sweep goes on")
