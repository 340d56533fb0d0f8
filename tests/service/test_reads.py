"""What the service answers of a sweep that ran: pages, trials, measurements, logs, best, events, cluster."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from fabrication import Fabricator
from fastapi.testclient import TestClient

from care_sweep.errors import DatabaseUnavailable
from care_sweep.spec import Measurement, Place, SweepState, TrialState
from care_sweep.store import Store

RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def test_sweeps_in_pages(http: TestClient, fabricate: Fabricator) -> None:
    made = [fabricate.queued(name=f"sweep {n}").id for n in range(7)]
    assert http.get("/v1/sweeps").json()["next_page_token"] is None
    seen, token, sizes = [], "", []
    while token is not None:
        page = http.get(
            "/v1/sweeps", params={"page_size": 3, **({"page_token": token} if token else {})}
        ).json()
        seen += [sweep["id"] for sweep in page["sweeps"]]
        sizes.append(len(page["sweeps"]))
        token = page["next_page_token"]
    assert seen == made[::-1]
    assert sizes == [3, 3, 1]


def test_sweeps_by_state(http: TestClient, fabricate: Fabricator) -> None:
    queued, ended = fabricate.queued().id, fabricate.finished()
    assert [s["id"] for s in http.get("/v1/sweeps?state=QUEUED").json()["sweeps"]] == [queued]
    both = http.get("/v1/sweeps?state=QUEUED&state=SUCCEEDED").json()["sweeps"]
    assert [s["id"] for s in both] == [ended, queued]
    assert both[0]["trial_counts"] == {"COMPLETE": 4}


def test_trials(http: TestClient, fabricate: Fabricator) -> None:
    sweep = f"/v1/sweeps/{fabricate.finished()}"
    first = http.get(f"{sweep}/trials?page_size=3").json()
    rest = http.get(f"{sweep}/trials?page_size=3&page_token={first['next_page_token']}").json()
    trials = first["trials"] + rest["trials"]
    assert [trial["number"] for trial in trials] == [0, 1, 2, 3]
    assert rest["next_page_token"] is None
    assert http.get(f"{sweep}/trials?state=FAILED").json()["trials"] == []
    trial = trials[1]
    assert trial["links"] == {
        "self": f"{sweep}/trials/1",
        "sweep": sweep,
        "measurements": f"{sweep}/trials/1/measurements",
        "logs": f"{sweep}/trials/1/logs",
        "checkpoint": f"{sweep}/trials/1/checkpoint",
    }
    assert (trial["value"], trial["state"], trial["is_baseline"]) == (0.5, "COMPLETE", False)
    for link in trial["links"].values():
        assert http.get(link).status_code == 200
    detail = http.get(trial["links"]["self"]).json()
    assert [attempt["attempt"] for attempt in detail.pop("attempts")] == [1]
    assert detail == trial
    for moment in (trial["started_at"], trial["finished_at"]):
        assert RFC3339.fullmatch(moment)


def test_measurements_and_logs(http: TestClient, fabricate: Fabricator) -> None:
    trial = f"/v1/sweeps/{fabricate.finished()}/trials/2"
    measurements = http.get(f"{trial}/measurements").json()["measurements"]
    assert [one["epoch"] for one in measurements] == [1, 2]
    assert measurements[1]["metrics"]["validation_knn_accuracy"] == 0.4
    assert measurements[1]["seconds"] == 1.5
    logs = http.get(f"{trial}/logs")
    assert logs.text == "trial 2 begins\n"
    assert logs.headers["content-type"] == "text/plain; charset=utf-8"
    assert logs.headers["x-content-type-options"] == "nosniff"


def test_a_report_reads_the_measurements_as_they_are_answered(
    http: TestClient, fabricate: Fabricator, tmp_path: Path
) -> None:
    from care_sweep.after_training import read_measurements  # with torch, which no other test here needs

    answer = http.get(f"/v1/sweeps/{fabricate.finished()}/trials/2/measurements")
    (tmp_path / "as-it-came.json").write_bytes(answer.content)
    (tmp_path / "pretty.json").write_text(json.dumps(answer.json(), indent=2))
    for name in ("as-it-came.json", "pretty.json"):
        first, last = read_measurements(tmp_path / name)
        assert (first.epoch, last.epoch, last.seconds) == (1, 2, 1.5)
        assert last.metrics["validation_knn_accuracy"] == 0.4


def test_logs_of_each_attempt(http: TestClient, fabricate: Fabricator) -> None:
    lease = fabricate.claimed()
    logs = f"/v1/sweeps/{lease.sweep_id}/trials/0/logs"
    lease.start_attempt(0, 1, {"temperature": 0.5}, is_baseline=True)
    assert "nothing yet" in http.get(logs).json()["detail"]
    fabricate.log(lease.sweep_id, 0, "first")
    lease.interrupt_trial(0, reason="worker lost")
    lease.start_attempt(0, 2, {"temperature": 0.5}, is_baseline=True)
    fabricate.log(lease.sweep_id, 0, "second", attempt=2)
    assert http.get(logs).text == "second"
    assert http.get(f"{logs}?attempt=1").text == "first"
    assert http.get(f"{logs}?attempt=3").status_code == 404
    attempts = http.get(logs.removesuffix("/logs")).json()["attempts"]
    assert [(one["attempt"], one["reason"]) for one in attempts] == [(1, "worker lost"), (2, None)]


def test_best(http: TestClient, fabricate: Fabricator) -> None:
    best = http.get(f"/v1/sweeps/{fabricate.finished()}/best?k=2").json()
    assert [one["number"] for one in best["configurations"]] == [1, 2]
    assert best["configurations"][0]["standard_error"] == pytest.approx(0.025)  # sqrt(0.5 * 0.5 / 400)
    assert [one["number"] for one in best["baselines"]] == [0]
    comparison = best["comparisons"][0]
    assert comparison["difference"] == pytest.approx(0.2)
    assert comparison["standard_error"] == pytest.approx((0.025**2 + 0.3 * 0.7 / 400) ** 0.5)
    assert "optimistic" in comparison["note"]
    assert best["importance"]["method"] == "PED-ANOVA"
    assert "needs 10" in best["importance"]["reason"]
    assert "4 COMPLETE" in best["evidence"] and "400 validation images" in best["evidence"]


def test_each_that_is_shown_has_the_error_of_its_own_images(http: TestClient, fabricate: Fabricator) -> None:
    """The best two, the best that was searched, which comes third, and a baseline that comes last."""
    lease = fabricate.claimed(num_trials=5)
    for number, (value, is_baseline) in enumerate([(0.1, True), (0.5, True), (0.5, True), (0.4, False)]):
        parameters = {"temperature": 0.5, "equivariance_weight": 0.1}
        lease.start_attempt(number, 1, parameters, is_baseline=is_baseline)
        metrics = {"validation_knn_accuracy": value, "num_validation_images": 100.0 * (1 + number)}
        last = Measurement(epoch=1, metrics=metrics, seconds=1.0)
        lease.record(number, 1, last, state=TrialState.COMPLETE, value=value)
    best = http.get(f"/v1/sweeps/{lease.sweep_id}/best?k=2").json()
    expected = [(p * (1 - p) / n) ** 0.5 for p, n in ((0.1, 100), (0.5, 200), (0.5, 300), (0.4, 400))]
    shown = {one["number"]: one["standard_error"] for one in best["configurations"] + best["baselines"]}
    assert shown == {number: pytest.approx(expected[number]) for number in (0, 1, 2)}
    assert [one["standard_error"] for one in best["comparisons"]] == [
        pytest.approx((expected[3] ** 2 + expected[number] ** 2) ** 0.5) for number in (0, 1, 2)
    ]
    assert "4 COMPLETE of 4" in best["evidence"] and "on 100 validation images" in best["evidence"]


def test_importance_of_a_longer_sweep(http: TestClient, fabricate: Fabricator) -> None:
    values = [0.3, *(0.2 + 0.01 * n for n in range(15))]
    found = http.get(f"/v1/sweeps/{fabricate.finished(values)}/best").json()["importance"]
    assert found["importances"] and sum(found["importances"].values()) == pytest.approx(1)


def test_best_of_nothing(http: TestClient, fabricate: Fabricator) -> None:
    best = http.get(f"/v1/sweeps/{fabricate.queued().id}/best").json()
    assert best["configurations"] == best["baselines"] == best["comparisons"] == []
    assert best["evidence"].startswith("none yet")


def test_cancel(http: TestClient, fabricate: Fabricator) -> None:
    queued = http.post(f"/v1/sweeps/{fabricate.queued().id}:cancel")
    assert (queued.status_code, queued.json()["state"]) == (200, "CANCELLED")
    running = fabricate.claimed().sweep_id
    for _ in range(2):
        answer = http.post(f"/v1/sweeps/{running}:cancel")
        assert (answer.status_code, answer.json()["state"]) == (202, "STOPPING")


def test_events_of_an_ended_sweep(http: TestClient, fabricate: Fabricator) -> None:
    sweep = fabricate.finished()
    answer = http.get(f"/v1/sweeps/{sweep}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = [_event(block) for block in answer.text.strip().split("\n\n")]
    stored = fabricate.store.events(sweep)
    assert [int(one["id"]) for one in told] == [record.sequence for record in stored]
    assert [one["event"] for one in told] == [record.kind for record in stored]
    first, last = json.loads(told[0]["data"]), json.loads(told[-1]["data"])
    assert (first["kind"], first["data"]["state"]) == ("sweep", SweepState.QUEUED)
    assert last["data"]["state"] == SweepState.SUCCEEDED
    assert RFC3339.fullmatch(last["recorded_at"])
    half = stored[len(stored) // 2].sequence
    resumed = http.get(f"/v1/sweeps/{sweep}/events?after=0", headers={"Last-Event-ID": str(half)})
    assert resumed.text == http.get(f"/v1/sweeps/{sweep}/events?after={half}").text
    assert resumed.text == "\n\n".join(answer.text.split("\n\n")[len(stored) // 2 + 1 :])
    assert http.get(f"/v1/sweeps/{sweep}/events?after={stored[-1].sequence}").text == ""


def test_a_sweep_that_failed_says_why(http: TestClient, fabricate: Fabricator) -> None:
    lease = fabricate.claimed()
    lease.start_attempt(0, 1, {"temperature": 0.5}, is_baseline=True)
    lease.finish_trial(0, TrialState.FAILED, reason="diverged", message="the loss is NaN")
    lease.finish_sweep(SweepState.FAILED, reason="all trials failed", message="see the logs")
    sweep = http.get(f"/v1/sweeps/{lease.sweep_id}").json()
    assert (sweep["state"], sweep["reason"], sweep["message"]) == (
        "FAILED",
        "all trials failed",
        "see the logs",
    )
    trial = http.get(f"/v1/sweeps/{lease.sweep_id}/trials").json()["trials"][0]
    assert (trial["reason"], trial["message"], trial["value"]) == ("diverged", "the loss is NaN", None)


def test_cluster(http: TestClient, fabricate: Fabricator) -> None:
    empty = http.get("/v1/cluster").json()
    assert empty["reported_at"] is None and empty["nodes"] == []
    node = {"id": "n", "host": "here", "is_alive": True, "resources": {"cpus": 2.0, "memory_bytes": 1e9}}
    report = {
        "nodes": [node],
        "resources": {"cpus": 2.0},
        "available": {},
        "dashboard_url": "http://127.0.0.1:8265",
    }
    fabricate.store.report_cluster("a runner", {**report, "ray_version": "2.60", "news": 1})
    cluster = http.get("/v1/cluster").json()
    assert cluster["nodes"] == [node]
    assert cluster["dashboard_url"] == "http://127.0.0.1:8265"
    assert 0 <= cluster["age_seconds"] < 5


def test_of_a_cluster_that_no_runner_tells_of_only_that_is_told(
    http: TestClient, fabricate: Fabricator
) -> None:
    node = {"id": "n", "host": "here", "is_alive": True, "resources": {}}
    fabricate.store.report_cluster("a runner", {"nodes": [node], "dashboard_url": "http://127.0.0.1:8265"})
    fabricate.store.clock = lambda: time.time() + 61
    cluster = http.get("/v1/cluster").json()
    assert (cluster["runner"], cluster["nodes"], cluster["dashboard_url"]) == ("a runner", [], None)
    assert cluster["age_seconds"] > 60


def test_an_attempt_is_found_in_rays_dashboard_while_its_cluster_is(
    http: TestClient, fabricate: Fabricator
) -> None:
    lease = fabricate.claimed()
    lease.start_attempt(0, 1, {"temperature": 0.5}, is_baseline=True)

    def links() -> tuple[str | None, str | None]:
        (attempt,) = http.get(f"/v1/sweeps/{lease.sweep_id}/trials/0").json()["attempts"]
        return attempt["dashboard_url"], attempt["log_url"]

    def report(runner: str, node_id: str, port: int) -> None:
        node = {"id": node_id, "host": "here", "is_alive": True, "resources": {}}
        address = f"http://127.0.0.1:{port}"
        fabricate.store.report_cluster(runner, {"nodes": [node], "dashboard_url": address})

    report("a runner", "b2", 8265)
    assert links() == (None, None), "no worker has begun"
    lease.place_attempt(0, 1, Place(actor_id="a1", node_id="b2", log_name="worker-c3.out"))
    assert links() == ("/ray/#/actors/a1", "/ray/#/logs/viewer?nodeId=b2&fileName=worker-c3.out")
    fabricate.store.clock = lambda: time.time() + 61
    assert links() == (None, None), "no runner tells of it any more"
    fabricate.store.clock = time.time
    report("a runner of another cluster", "d4", 8266)
    assert links() == (None, None), "/ray/ shows another one"
    report("a runner", "e5", 8265)
    assert links() == (None, None), "the cluster was started anew"


def _take_away(fabricate: Fabricator) -> None:
    """A folder lies where the database was."""
    engine = fabricate.store.engine
    engine.dispose()
    path = Path(engine.url.database or "")
    path.rename(path.with_suffix(".away"))
    path.mkdir()


def test_a_database_that_went_away(http: TestClient, fabricate: Fabricator) -> None:
    _take_away(fabricate)
    answer = http.get("/v1/cluster")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) > 0
    assert http.get("/healthz").json()["status"] == "ok"


def test_a_stream_whose_database_went_away(
    http: TestClient, fabricate: Fabricator, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = fabricate.queued().id

    def away(*_: Any, **__: Any) -> None:
        raise DatabaseUnavailable("the database does not answer")

    monkeypatch.setattr(Store, "events", away)
    assert http.get(f"/v1/sweeps/{sweep}/events").text == "retry: 1000\n\n"  # come back


def _event(block: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in block.splitlines())
