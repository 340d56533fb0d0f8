"""What is said of a database and a storage that cannot be used, and by whom; and that it passes."""

import errno
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fabrication import document
from fastapi.testclient import TestClient
from sqlalchemy import event

from care_sweep.settings import Settings
from care_sweep.store import Store
from service import readiness
from service.readiness import Readiness


def _set_on_every_connection(store: Store, pragma: str) -> None:
    """On those that are there as they are taken, too: the service is not started anew."""

    @event.listens_for(store.engine, "checkout")
    def _configure(connection: Any, _: Any, __: Any) -> None:
        connection.execute(f"PRAGMA {pragma}")


def test_a_full_disk_is_said_and_loses_nothing(http: TestClient, store: Store) -> None:
    bulky = document(space__description="x" * 2000)
    accepted = [http.post("/v1/sweeps", json=bulky).json()["id"]]
    _set_on_every_connection(store, "max_page_count=1")  # SQLite takes the pages that there are
    answers = [http.post("/v1/sweeps", json=bulky, headers={"Idempotency-Key": str(n)}) for n in range(20)]
    accepted += [answer.json()["id"] for answer in answers if answer.status_code == 201]
    problem = answers[-1].json()
    assert (problem["status"], problem["title"]) == (507, "Database full")
    assert "free space" in problem["detail"]
    assert answers[-1].headers["retry-after"] == "5"
    assert http.get("/v1/sweeps").status_code == 200

    _set_on_every_connection(store, "max_page_count=1000000")
    again = http.post("/v1/sweeps", json=bulky, headers={"Idempotency-Key": "19"})
    assert again.status_code == 201
    listed = {sweep["id"] for sweep in http.get("/v1/sweeps?page_size=100").json()["sweeps"]}
    assert listed == {*accepted, again.json()["id"]}


def test_another_disk_that_is_full_is_said(http: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a route writes to; any other word of the system is a bug."""
    client = TestClient(http.app, raise_server_exceptions=False)
    for number, status in ((errno.ENOSPC, 507), (errno.EDQUOT, 507), (errno.EIO, 500)):

        def fail(_: Store, number: int = number) -> Any:
            raise OSError(number, os.strerror(number), "/somewhere")

        monkeypatch.setattr(Store, "cluster", fail)
        assert client.get("/v1/cluster").status_code == status


@pytest.mark.parametrize("path", ["/readyz", "/v1/sweeps"])
def test_a_database_that_cannot_be_written_is_not_ready(http: TestClient, store: Store, path: str) -> None:
    assert http.get("/readyz").status_code == 200
    _set_on_every_connection(store, "query_only=ON")
    answer = http.get(path) if path == "/readyz" else http.post(path, json=document())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "the database is read-only" in answer.json()["detail"]
    assert http.get("/healthz").status_code == 200
    assert http.get("/v1/sweeps").status_code == 200


def test_a_storage_that_is_out_of_reach_is_not_ready(
    http: TestClient, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    Path(settings.storage_uri).touch()
    answer = http.get("/readyz")
    assert (answer.status_code, answer.json()["detail"]) == (503, "the storage is out of reach")
    assert answer.headers["retry-after"] == "5"
    assert settings.storage_uri in caplog.text, "the operator hears where"
    Path(settings.storage_uri).unlink()
    assert http.get("/readyz").status_code == 200


def test_a_part_that_does_not_answer_is_told_soon_and_holds_one_thread(
    http: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    mended = threading.Event()
    monkeypatch.setattr(readiness, "_PATIENCE_SECONDS", 0.2)
    parts: Any = SimpleNamespace(ping=lambda: mended.wait(30), check=lambda: None)
    http.app.state.readiness = Readiness(parts, parts)  # type: ignore[attr-defined]
    before = threading.active_count()
    for _ in range(5):
        began = time.monotonic()
        answer = http.get("/readyz")
        assert (answer.status_code, time.monotonic() - began < 5) == (503, True)
        assert answer.json()["detail"] == "the database does not answer within 0.2 s"
    assert threading.active_count() <= before + 2
    mended.set()
    time.sleep(0.2)
    assert http.get("/readyz").status_code == 200
