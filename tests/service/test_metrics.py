"""What operators read at /metrics: true figures, cheap to ask for, and for whose eyes."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from fabrication import Fabricator, document
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import insert

from care_sweep.settings import Settings
from care_sweep.spec import Measurement, SweepState, TrialState
from care_sweep.store import Scope, Store, observe_transactions
from care_sweep.store.database import writing
from care_sweep.store.schema import trials
from service import metrics
from service.app import create_app
from service.metrics import StoreCollector

Samples = Mapping[tuple[str, tuple[str, ...]], float]


@pytest.fixture(autouse=True)
def _nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_KEPT_SECONDS", 0.0)


def read(http: TestClient, **headers: str) -> Samples:
    """Each sample by its name and the values of its labels, which come in the order of their names."""
    answer = http.get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = text_string_to_metric_families(answer.text)
    samples = [sample for family in families for sample in family.samples]
    return {(sample.name, tuple(sample.labels.values())): sample.value for sample in samples}


def test_sweeps_and_trials_are_counted_by_state(http: TestClient, fabricate: Fabricator) -> None:
    fabricate.finished()
    fabricate.queued()
    running = fabricate.claimed()
    running.start_attempt(0, 1, {"temperature": 0.5}, is_baseline=True)
    found = read(http)
    assert found["care_sweep_store_up", ()] == 1
    states = {state: found["care_sweep_sweeps", (state,)] for state in SweepState}
    assert {state: number for state, number in states.items() if number} == {
        SweepState.SUCCEEDED: 1,
        SweepState.QUEUED: 1,
        SweepState.RUNNING: 1,
    }
    outcomes = {state: found["care_sweep_trials", (state,)] for state in TrialState}
    assert {state: number for state, number in outcomes.items() if number} == {
        TrialState.COMPLETE: 4,
        TrialState.RUNNING: 1,
    }
    assert found["care_sweep_held_sweeps", ()] == 1


def test_a_held_sweep_says_what_it_has_spent(http: TestClient, fabricate: Fabricator) -> None:
    lease = fabricate.claimed()
    lease.renew(3.0)
    lease.start_attempt(0, 1, {"temperature": 0.5}, is_baseline=True, search_seconds=0.5)
    trained = Measurement(epoch=1, metrics={"train_loss": 1.0}, seconds=2.0, num_images=512)
    lease.record(0, 1, trained, gpu_seconds=0.5)
    found = read(http)
    spent = ("active_seconds", "gpu_seconds", "search_seconds", "images_trained")
    of_sweep = (lease.sweep_id,)
    assert [found[f"care_sweep_{name}_total", of_sweep] for name in spent] == [3.0, 0.5, 0.5, 512.0]
    lease.release()
    assert ("care_sweep_gpu_seconds_total", of_sweep) not in read(http)


def test_no_more_held_sweeps_than_a_bound_have_series(
    http: TestClient, fabricate: Fabricator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_MOST_HELD", 2)
    held = [fabricate.claimed().sweep_id for _ in range(3)]
    found = read(http)
    shown = [labels[0] for name, labels in found if name == "care_sweep_lease_age_seconds"]
    assert sorted(shown) == sorted(held[:2]), "the oldest"
    assert found["care_sweep_held_sweeps", ()] == 3


def test_a_lease_ages_while_its_counter_stands_still(store: Store, fabricate: Fabricator) -> None:
    """By the observer's own clock: what the holder's says does not matter."""
    now = 100.0
    collector = StoreCollector(store, lambda: now)
    lease = fabricate.claimed()

    def age() -> float:
        (family,) = [one for one in collector.collect() if one.name == "care_sweep_lease_age_seconds"]
        return float(family.samples[0].value)

    assert age() == 0.0
    now += 7.0
    assert age() == 7.0
    now += 7.0
    assert age() == 14.0
    lease.renew()
    now += 7.0
    assert age() == 0.0
    now += 7.0
    assert age() == 7.0


def test_the_store_is_asked_once_in_five_seconds(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_KEPT_SECONDS", 5.0)
    transactions: list[str] = []
    observe_transactions(store.engine, lambda kind, _: transactions.append(kind))
    now = 100.0
    collector = StoreCollector(store, lambda: now)
    collector.collect()
    asked = len(transactions)
    collector.collect()
    assert len(transactions) == asked > 0
    now += 5.0
    collector.collect()
    assert len(transactions) == 2 * asked


def test_the_cluster_is_as_a_runner_saw_it(http: TestClient, store: Store) -> None:
    assert ("care_sweep_cluster_nodes", ()) not in read(http)
    nodes = [{"id": "a", "host": "a", "is_alive": alive, "resources": {}} for alive in (True, False)]
    report = {"nodes": nodes, "resources": {"gpus": 4.0, "cpus": 8.0}, "available": {"gpus": 1.0}}
    store.report_cluster("a runner", report)
    found = read(http)
    assert found["care_sweep_cluster_resources", ("gpus",)] == 4
    assert found["care_sweep_cluster_available", ("gpus",)] == 1
    assert found["care_sweep_cluster_nodes", ()] == 1
    assert found["care_sweep_cluster_report_age_seconds", ()] >= 0
    store.clock = lambda: time.time() + 61
    found = read(http)
    assert {name for name, _ in found if name.startswith("care_sweep_cluster")} == {
        "care_sweep_cluster_report_age_seconds"
    }, "what it said may be true no more"


def test_requests_are_counted_by_route_and_not_by_path(http: TestClient, fabricate: Fabricator) -> None:
    sweep = fabricate.queued().id
    for _ in range(3):
        assert http.get(f"/v1/sweeps/{sweep}").status_code == 200
    assert http.get("/v1/sweeps/absent").status_code == 404
    assert http.get("/nowhere/at/all").status_code == 404
    assert http.request("BREW", "/nowhere").status_code == 404
    found = read(http)
    requests = {labels: n for (name, labels), n in found.items() if name == "care_sweep_http_requests_total"}
    assert requests == {
        ("GET", "/v1/sweeps/{sweep_id}", "200"): 3,
        ("GET", "/v1/sweeps/{sweep_id}", "404"): 1,
        ("GET", "other", "404"): 1,
        ("other", "other", "404"): 1,
    }
    assert found["care_sweep_http_request_seconds_count", ("GET", "/v1/sweeps/{sweep_id}")] == 4


def test_a_bug_is_counted(settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Store) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Store, "cluster", fail)
    http = TestClient(create_app(settings, store), raise_server_exceptions=False)
    assert http.get("/v1/cluster").status_code == 500
    monkeypatch.undo()
    assert read(http)["care_sweep_http_requests_total", ("GET", "/v1/cluster", "500")] == 1


def test_transactions_are_timed(http: TestClient) -> None:
    before = read(http)
    assert http.post("/v1/sweeps", json=document()).status_code == 201
    after = read(http)
    name = "care_sweep_store_transaction_seconds_count"
    assert after[name, ("write",)] == before.get((name, ("write",)), 0) + 1
    assert after[name, ("read",)] > before.get((name, ("read",)), 0)


def test_open_streams_are_counted(http: TestClient, fabricate: Fabricator) -> None:
    """A test client reads a stream to its end: in between, the measure is asked from inside."""
    lease = fabricate.claimed()
    gauge = http.app.state.measures.open_streams  # type: ignore[attr-defined]
    seen: list[float] = []
    still_opens = http.app.state.access.still_opens  # type: ignore[attr-defined]

    async def looked(token: str | None) -> bool:
        seen.append(gauge._value.get())
        lease.finish_sweep(SweepState.SUCCEEDED) if len(seen) == 1 else None
        return bool(await still_opens(token))

    http.app.state.access.still_opens = looked  # type: ignore[attr-defined]
    assert http.get(f"/v1/sweeps/{lease.sweep_id}/events").status_code == 200
    assert seen[-1] == 1
    assert read(http)["care_sweep_open_event_streams", ()] == 0


def test_without_a_database_the_service_speaks_of_itself(http: TestClient, store: Store) -> None:
    assert read(http)["care_sweep_store_up", ()] == 1
    store.engine.dispose()
    database = store.engine.url.database
    assert database is not None
    Path(database).unlink()
    Path(database).mkdir()
    found = read(http)
    assert found["care_sweep_store_up", ()] == 0
    assert not any(name == "care_sweep_sweeps" for name, _ in found)
    assert any(name == "care_sweep_store_transaction_seconds_count" for name, _ in found)


def test_a_token_for_metrics_opens_nothing_else(settings: Settings, store: Store) -> None:
    http = TestClient(create_app(settings, store, requires_tokens=True), raise_server_exceptions=False)
    text, _ = store.tokens.create("prometheus", Scope.METRICS, expires_in_seconds=None)
    bearer = {"Authorization": f"Bearer {text}"}
    assert read(http, **bearer)["care_sweep_store_up", ()] == 1
    for path in ("/v1/sweeps", "/v1/cluster", "/v1/search-spaces"):
        assert http.get(path, headers=bearer).status_code == 403
    refused = http.post("/v1/sweeps", json=document(), headers=bearer)
    assert (refused.status_code, refused.json()["detail"]) == (
        403,
        "the scope of this token is metrics, and this needs submit",
    )


@pytest.mark.parametrize("scope", [Scope.READ, Scope.SUBMIT])
def test_who_sees_ones_own_sweeps_does_not_see_the_sum_of_all(
    settings: Settings, store: Store, scope: Scope
) -> None:
    http = TestClient(create_app(settings, store, requires_tokens=True), raise_server_exceptions=False)
    text, _ = store.tokens.create("alice", scope, expires_in_seconds=None)
    assert http.get("/metrics", headers={"Authorization": f"Bearer {text}"}).status_code == 403


def test_ten_thousand_trials_cost_little(http: TestClient, store: Store, fabricate: Fabricator) -> None:
    """Less than a page of a thousand of them."""
    sweep = fabricate.claimed(num_trials=10_000).sweep_id
    row = {"sweep_id": sweep, "parameters": {}, "is_baseline": False, "state": "COMPLETE", "attempt": 1}
    with writing(store.engine) as connection:
        connection.execute(insert(trials), [{**row, "number": number} for number in range(10_000)])

    def seconds(ask: Callable[[], object]) -> float:
        began = time.perf_counter()
        ask()
        return time.perf_counter() - began

    page = f"/v1/sweeps/{sweep}/trials?page_size=1000"
    of_scrape = min(seconds(lambda: http.get("/metrics")) for _ in range(5))
    of_page = min(seconds(lambda: http.get(page)) for _ in range(5))
    assert read(http)["care_sweep_trials", ("COMPLETE",)] == 10_000
    assert of_scrape < of_page
