"""A whole instance whose checkpoints and logs lie in an object store: a sweep, a lost worker, a download."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import care_sweep
from benchmarks.few_images import cut_few_images
from care_sweep.client import Client
from care_sweep.settings import Settings
from care_sweep.storage import open_storage
from care_sweep.supervise import running

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def settings(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("CARE_SWEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CARE_SWEEP_STORAGE_URI", f"{bucket}/instance")
    return Settings.from_environment()


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    with running(settings, num_cpus=1) as instance, Client(instance.url) as client:
        yield client


def test_a_sweep_survives_a_lost_worker_and_its_checkpoint_loads(
    settings: Settings, client: Client, tmp_path: Path
) -> None:
    space = {
        "parameters": {"temperature": {"type": "float", "low": 0.05, "high": 1}},
        "fixed": {
            "dataset": cut_few_images(settings.data_roots[0] / "few", num_classes=2),
            "encoder": "resnet_tiny",
            "epochs": 12,
            "batch_size": 32,
            "num_splits": 4,
            "probe_epochs": 2,
        },
    }
    document = {"name": "far", "space": space, "num_trials": 2, "early_stopping": "none"}
    sweep_id = client.submit(document)["id"]
    deadline = time.monotonic() + 90
    while not (list(client.trials(sweep_id)) and client.measurements(sweep_id, 0)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    first_lines = next(client.follow_logs(sweep_id, 0))
    worker = re.search(r"process (\d+)", first_lines)
    assert worker is not None
    os.kill(int(worker.group(1)), signal.SIGKILL)

    ended = client.wait(sweep_id, timeout=180)
    assert (ended["state"], ended["trial_counts"]) == ("SUCCEEDED", {"COMPLETE": 2})
    first = client.trial(sweep_id, 0)
    assert [attempt["reason"] for attempt in first["attempts"]] == ["worker lost", None]
    assert [measurement["epoch"] for measurement in client.measurements(sweep_id, 0)] == list(range(1, 13))
    assert "goes on from" in client.logs(sweep_id, 0, attempt=2), "it did not begin anew"
    best = client.best(sweep_id)["configurations"][0]
    encoder = care_sweep.load(client.download(sweep_id, tmp_path))
    assert encoder.config.temperature == best["values"]["temperature"]

    storage = open_storage(settings.storage_uri)
    deadline = time.monotonic() + 20
    while not (logs := [one for one in storage.list(f"sweeps/{sweep_id}") if "/driver-" in one.key]):
        assert time.monotonic() < deadline, "the driver's log follows its end"
        time.sleep(0.1)
    assert logs[0].key == f"sweeps/{sweep_id}/driver-00001.log"
    names = {one.key.rpartition("/")[2] for one in storage.list("sweeps")}
    assert names == {"driver-00001.log", "log.txt", "checkpoint.tar"}, "no training state stays"
    assert not (settings.home / "storage").exists()
