"""What is said of a database that answers but cannot be written, and by whom."""

from typing import Any

import pytest
from fabrication import document
from fastapi.testclient import TestClient
from sqlalchemy import event

from care_sweep.store import Store


def _set_on_every_connection(store: Store, pragma: str) -> None:
    @event.listens_for(store.engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        connection.execute(f"PRAGMA {pragma}")

    store.engine.dispose()


def test_a_full_disk_is_said(http: TestClient, store: Store) -> None:
    _set_on_every_connection(store, "max_page_count=1")  # SQLite takes the pages that there are
    bulky = document(space__description="x" * 2000)
    answers = [http.post("/v1/sweeps", json=bulky) for _ in range(20)]
    problem = answers[-1].json()
    assert (problem["status"], problem["title"]) == (503, "Database full")
    assert "free space" in problem["detail"]
    assert answers[-1].headers["retry-after"] == "5"


@pytest.mark.parametrize("path", ["/readyz", "/v1/sweeps"])
def test_a_database_that_cannot_be_written_is_not_ready(http: TestClient, store: Store, path: str) -> None:
    assert http.get("/readyz").status_code == 200
    _set_on_every_connection(store, "query_only=ON")
    answer = http.get(path) if path == "/readyz" else http.post(path, json=document())
    assert (answer.status_code, answer.json()["title"]) == (503, "Database read-only")
    assert http.get("/healthz").status_code == 200
    assert http.get("/v1/sweeps").status_code == 200
