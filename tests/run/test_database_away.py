"""A driver whose database is away: trials go on, and what they measured lands once it is back."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conducting import EPOCHS, Clock, measure, next_of, sweep_spec
from postgresql_server import PostgreSQLServer

from benchmarks.few_images import cut_few_images
from care_sweep.client import Client
from care_sweep.run.conductor import Conductor
from care_sweep.run.patience import outlast
from care_sweep.settings import Settings
from care_sweep.spec import TrialState
from care_sweep.storage import open_storage
from care_sweep.store import Lease, Store, open_database
from care_sweep.supervise import running

pytestmark = pytest.mark.slow


def test_a_conductor_outlasts_its_database(postgresql_server: PostgreSQLServer, tmp_path: Path) -> None:
    engine = open_database(postgresql_server.create())
    store, clock = Store(engine), Clock()
    sweep_id = store.submit(sweep_spec(early_stopping="none"))[0].id
    claimed = store.claim(store.sweep(sweep_id), "test")
    assert claimed is not None
    lease = Lease(engine, sweep_id, claimed.token, store.clock, persist=outlast)
    conductor = Conductor(store, lease, open_storage(str(tmp_path)), clock)
    trial = next_of(conductor)
    for epoch in range(1, EPOCHS + 1):
        postgresql_server.stop()
        clock.now += 1  # so that it looks what users want, and cannot see it
        threading.Timer(2.0, postgresql_server.start).start()
        assert measure(conductor, trial, epoch, 0.5) == (epoch == EPOCHS)
    record = store.trial(sweep_id, trial.number)
    assert (record.state, record.attempt, record.last_epoch) == (TrialState.COMPLETE, 1, EPOCHS)
    told = [e.data["epoch"] for e in store.events(sweep_id) if e.kind == "measurement"]
    assert told == list(range(1, EPOCHS + 1))
    engine.dispose()


@pytest.fixture
def settings(
    postgresql_server: PostgreSQLServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    monkeypatch.setenv("CARE_SWEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CARE_SWEEP_DATABASE_URL", postgresql_server.create())
    return Settings.from_environment()


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    with running(settings, num_cpus=1) as instance, Client(instance.url) as client:
        yield client


@pytest.mark.ray
def test_a_sweep_outlasts_its_database(
    settings: Settings, client: Client, postgresql_server: PostgreSQLServer
) -> None:
    fixed = {
        "dataset": cut_few_images(settings.data_roots[0] / "few", num_classes=2),
        "encoder": "resnet_tiny",
        "epochs": 20,
        "batch_size": 32,
        "num_splits": 4,
        "probe_epochs": 2,
    }
    space: dict[str, Any] = {
        "parameters": {"temperature": {"type": "float", "low": 0.05, "high": 1}},
        "fixed": fixed,
    }
    document = {"name": "away", "space": space, "num_trials": 2, "early_stopping": "none"}
    sweep_id = client.submit(document)["id"]
    heard: list[int] = []

    def follow() -> None:
        heard.extend(event["sequence"] for event in client.events(sweep_id))

    reader = threading.Thread(target=follow)
    reader.start()
    deadline = time.monotonic() + 90
    while not (list(client.trials(sweep_id)) and client.measurements(sweep_id, 0)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for is_silent in (False, True):
        if is_silent:
            with postgresql_server.silent():
                time.sleep(8)
        else:
            postgresql_server.stop()
            time.sleep(8)
            postgresql_server.start()
        time.sleep(3)

    store = Store(outlast(lambda: open_database(settings.database_url)))
    deadline = time.monotonic() + 180
    while not store.sweep(sweep_id).state.is_terminal:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    reader.join(timeout=60)
    sweep = store.sweep(sweep_id)
    assert (sweep.state, sweep.trial_counts) == ("SUCCEEDED", {"COMPLETE": 2})
    assert sweep.fencing_token == 1, "nobody took it over, and its driver was not replaced"
    attempts = [store.attempts(sweep_id, number) for number in range(2)]
    assert [[attempt.reason for attempt in one] for one in attempts] == [[None], [None]]
    for number in range(2):
        assert [m.epoch for m in store.measurements(sweep_id, number)] == list(range(1, 21))
    assert heard == [event.sequence for event in store.events(sweep_id)]
    store.engine.dispose()
