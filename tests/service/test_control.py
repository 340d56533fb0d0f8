"""Control over HTTP, by the client and on the command line: statuses, revisions, points, deletion."""

from typing import Any

import pytest
from conftest import Run
from fabrication import Fabricator
from fastapi.testclient import TestClient

from care_sweep.client import Client
from care_sweep.errors import ServiceError
from care_sweep.layout import sweep_prefix
from care_sweep.spec import SweepState


def _sweep(fabricate: Fabricator) -> str:
    return f"/v1/sweeps/{fabricate.claimed().sweep_id}"


def _problem(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    return problem


# --- pause, resume, stop ---


def test_a_running_sweep_is_paused_and_resumed(http: TestClient, fabricate: Fabricator) -> None:
    lease = fabricate.claimed()
    sweep = f"/v1/sweeps/{lease.sweep_id}"
    paused = http.post(f"{sweep}:pause")
    assert (paused.status_code, paused.json()["state"]) == (202, "PAUSED"), "its driver winds it down"
    lease.release()
    resumed = http.post(f"{sweep}:resume")
    assert (resumed.status_code, resumed.json()["state"]) == (200, "QUEUED")


def test_a_stopped_sweep_drains(http: TestClient, fabricate: Fabricator) -> None:
    stopped = http.post(f"{_sweep(fabricate)}:stop")
    assert (stopped.status_code, stopped.json()["state"]) == (202, "STOPPING")
    assert stopped.json()["reason"] == "stopped"
    waiting = http.post(f"/v1/sweeps/{fabricate.queued().id}:stop")
    assert (waiting.status_code, waiting.json()["state"]) == (200, "SUCCEEDED")


@pytest.mark.parametrize("move", ["pause", "resume", "stop", "cancel"])
def test_an_illegal_move_is_a_conflict_in_words(http: TestClient, fabricate: Fabricator, move: str) -> None:
    problem = _problem(http.post(f"/v1/sweeps/{fabricate.finished()}:{move}"), 409)
    assert problem["detail"].startswith(f"cannot {move} the sweep: it has already ended as SUCCEEDED; ")
    _problem(http.post(f"/v1/sweeps/absent:{move}"), 404)


# --- changes ---


def test_a_change_wants_the_revision_that_was_read(http: TestClient, fabricate: Fabricator) -> None:
    sweep = _sweep(fabricate)
    tag = http.get(sweep).headers["ETag"]
    changed = http.patch(sweep, json={"num_trials": 9}, headers={"If-Match": tag})
    assert (changed.status_code, changed.json()["num_trials"]) == (202, 9)
    assert changed.headers["ETag"] != tag
    problem = _problem(http.patch(sweep, json={"num_trials": 12}, headers={"If-Match": tag}), 412)
    assert "read it again" in problem["detail"]
    assert http.get(sweep).json()["num_trials"] == 9
    for words in ('"x"', "W/" + tag, "7"):
        _problem(http.patch(sweep, json={"num_trials": 12}, headers={"If-Match": words}), 412)
    assert http.patch(sweep, json={"num_trials": 10}, headers={"If-Match": "*"}).status_code == 202


def test_what_is_left_out_stays_and_null_takes_away(http: TestClient, fabricate: Fabricator) -> None:
    lease = fabricate.claimed(max_concurrent_trials=2, budget={"max_seconds": 60.0})
    sweep = f"/v1/sweeps/{lease.sweep_id}"
    spec = http.patch(sweep, json={"budget": {"max_gpu_hours": 2.0}}).json()["spec"]
    assert spec["budget"] == {"max_seconds": None, "max_gpu_hours": 2.0}
    assert spec["max_concurrent_trials"] == 2
    spec = http.patch(sweep, json={"max_concurrent_trials": None, "budget": None}).json()["spec"]
    assert (spec["budget"], spec["max_concurrent_trials"]) == (None, None)
    assert spec["priority"] == 1.0
    assert http.patch(sweep, json={"priority": 3}).json()["spec"]["priority"] == 3.0


@pytest.mark.parametrize(
    ("change", "place", "words"),
    [
        ({}, "", "changes nothing; give num_trials"),
        ({"num_trials": 0}, "/num_trials", "greater than or equal to 1"),
        ({"num_trials": None}, "/num_trials", "integer"),
        ({"num_trials": "9"}, "/num_trials", "integer"),
        ({"seed": 1}, "/seed", "unknown"),
        ({"priority": 0}, "/priority", "greater than or equal to 0.01"),
        ({"priority": None}, "/priority", "number"),
        ({"budget": {"max_seconds": -1}}, "/budget/max_seconds", "greater than 0"),
        ([], "", "must be a mapping"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(
    http: TestClient, fabricate: Fabricator, change: Any, place: str, words: str
) -> None:
    sweep = _sweep(fabricate)
    before = http.get(sweep).json()
    (found,) = _problem(http.patch(sweep, json=change), 422)["problems"]
    assert found["pointer"] == place
    assert words in found["detail"]
    assert http.get(sweep).json() == before


def test_an_ended_sweep_goes_on_when_it_is_extended(http: TestClient, fabricate: Fabricator) -> None:
    sweep = f"/v1/sweeps/{fabricate.finished()}"
    answer = http.patch(sweep, json={"num_trials": 6})
    assert (answer.status_code, answer.json()["state"]) == (200, "QUEUED")
    assert answer.json()["trial_counts"] == {"COMPLETE": 4}
    problem = _problem(http.patch(sweep, json={"num_trials": 3}), 409)
    assert "4 trials that have begun" in problem["detail"]


# --- points and trials ---


def test_a_point_is_enqueued_with_its_defaults(http: TestClient, fabricate: Fabricator) -> None:
    lease = fabricate.claimed()
    sweep = f"/v1/sweeps/{lease.sweep_id}"
    assert http.post(f"{sweep}/trials", json={"parameters": {"temperature": 0.25}}).status_code == 202
    wishes = fabricate.store.wishes(lease.sweep_id, seen=0)
    assert wishes is not None
    assert list(wishes.enqueued.values()) == [{"temperature": 0.25, "equivariance_weight": 0.3}]


def test_what_waits_is_told_in_order(http: TestClient, fabricate: Fabricator) -> None:
    sweep = _sweep(fabricate)
    assert http.get(sweep).json()["enqueued"] == []
    for value in (0.25, 0.125):
        answer = http.post(f"{sweep}/trials", json={"parameters": {"temperature": value}}).json()
    assert [point["parameters"]["temperature"] for point in answer["enqueued"]] == [0.25, 0.125]
    first, second = (point["sequence"] for point in answer["enqueued"])
    assert first < second
    assert http.get(sweep).json()["enqueued"] == answer["enqueued"]


def test_a_repeat_with_the_same_key_enqueues_nothing_more(http: TestClient, fabricate: Fabricator) -> None:
    sweep, other = _sweep(fabricate), _sweep(fabricate)

    def enqueue(sweep: str, value: float) -> Any:
        headers = {"Idempotency-Key": "a-key"}
        return http.post(f"{sweep}/trials", json={"parameters": {"temperature": value}}, headers=headers)

    answers = [enqueue(sweep, 0.25) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json() == answers[1].json()
    for reused in (enqueue(sweep, 0.5), enqueue(other, 0.25)):
        assert "take a new key" in _problem(reused, 422)["detail"]
    assert len(http.get(sweep).json()["enqueued"]) == 1
    assert http.get(other).json()["enqueued"] == []


@pytest.mark.parametrize(
    ("point", "place", "words"),
    [
        ({}, "/parameters", "is required"),
        ({"parameters": {"temperature": 7}}, "/parameters/temperature", "in [0.05, 1.0]"),
        ({"parameters": {"temprature": 0.5}}, "/parameters/temprature", "temperature"),
        ({"parameters": {"temperature": "warm"}}, "/parameters/temperature", "in [0.05, 1.0]"),
    ],
)
def test_a_point_outside_the_space_is_refused(
    http: TestClient, fabricate: Fabricator, point: Any, place: str, words: str
) -> None:
    (found,) = _problem(http.post(f"{_sweep(fabricate)}/trials", json=point), 422)["problems"]
    assert found["pointer"] == place
    assert words in found["detail"]


def test_a_trial_is_stopped_by_its_number(http: TestClient, fabricate: Fabricator) -> None:
    lease = fabricate.claimed()
    sweep = f"/v1/sweeps/{lease.sweep_id}"
    lease.start_attempt(0, 1, {"temperature": 0.5}, is_baseline=True)
    assert http.post(f"{sweep}/trials/0:stop").status_code == 202
    _problem(http.post(f"{sweep}/trials/7:stop"), 404)
    fabricate.trial(lease, 1, 0.5)
    assert "already ended as COMPLETE" in _problem(http.post(f"{sweep}/trials/1:stop"), 409)["detail"]


# --- deletion ---


def test_a_deleted_sweep_leaves_nothing(http: TestClient, fabricate: Fabricator) -> None:
    sweep_id, other = fabricate.finished(), fabricate.finished()
    left = sweep_prefix(sweep_id)
    assert list(fabricate.storage.list(left))
    deleted = http.delete(f"/v1/sweeps/{sweep_id}")
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert not list(fabricate.storage.list(left))
    _problem(http.get(f"/v1/sweeps/{sweep_id}"), 404)
    _problem(http.delete(f"/v1/sweeps/{sweep_id}"), 404)
    assert http.get(f"/v1/sweeps/{other}/checkpoints/best").status_code == 200


def test_a_live_sweep_cannot_be_deleted(http: TestClient, fabricate: Fabricator) -> None:
    sweep = _sweep(fabricate)
    assert "only one that is SUCCEEDED, FAILED or CANCELLED" in _problem(http.delete(sweep), 409)["detail"]
    assert http.get(sweep).status_code == 200


# --- client and command line ---


def test_the_client_controls(client: Client, live_fabricate: Fabricator) -> None:
    lease = live_fabricate.claimed()
    sweep_id = lease.sweep_id
    changed = client.change(sweep_id, {"num_trials": 6}, revision=client.sweep(sweep_id)["revision"])
    with pytest.raises(ServiceError, match="read it again"):
        client.change(sweep_id, {"num_trials": 7}, revision=changed["revision"] - 1)
    lease.start_attempt(0, 1, {"temperature": 0.5}, is_baseline=True)
    client.stop_trial(sweep_id, 0)
    (waiting,) = client.enqueue(sweep_id, {"temperature": 0.5})["enqueued"]
    assert waiting["parameters"]["temperature"] == 0.5
    assert client.pause(sweep_id)["state"] == SweepState.PAUSED
    assert client.resume(sweep_id)["state"] == SweepState.QUEUED
    assert client.stop(sweep_id)["state"] == SweepState.SUCCEEDED
    client.delete(sweep_id)
    with pytest.raises(ServiceError, match="there is no sweep"):
        client.sweep(sweep_id)


def test_a_person_controls(run: Run, live_fabricate: Fabricator) -> None:
    sweep_id = live_fabricate.claimed(budget={"max_seconds": 60.0}).sweep_id
    said = run("enqueue", sweep_id, "temperature=0.5", "equivariance_weight=0.1").stdout
    assert said == f"sweep {sweep_id} will try temperature=0.5 equivariance_weight=0.1\n"
    assert "enqueued  temperature=0.5, equivariance_weight=0.1\n" in run("show", sweep_id).stdout
    assert run("extend", sweep_id, "--num-trials", "9", "--max-gpu-hours", "3").stdout.endswith("RUNNING\n")
    assert "changes nothing" in run("extend", sweep_id, status=1).stderr
    store = live_fabricate.store
    spec = store.sweep(sweep_id).spec
    assert spec.num_trials == 9
    assert spec.budget is not None
    assert (spec.budget.max_seconds, spec.budget.max_gpu_hours) == (60.0, 3.0)
    assert store.sweep(sweep_id).spec.max_concurrent_trials is None
    for arguments, left in (
        (["--max-concurrent-trials", "3", "--max-seconds", "none"], (3, None, 3.0)),
        (["--max-concurrent-trials", "none"], (None, None, 3.0)),
    ):
        run("extend", sweep_id, *arguments)
        spec = store.sweep(sweep_id).spec
        assert spec.budget is not None
        assert (spec.max_concurrent_trials, spec.budget.max_seconds, spec.budget.max_gpu_hours) == left
    run("extend", sweep_id, "--max-gpu-hours", "none")
    assert store.sweep(sweep_id).spec.budget is None
    for command, state in (("pause", "PAUSED"), ("resume", "QUEUED"), ("stop", "SUCCEEDED")):
        assert run(command, sweep_id).stdout == f"sweep {sweep_id} is {state}\n"
    assert "no trial 3" in run("stop", live_fabricate.claimed().sweep_id, "--trial", "3", status=1).stderr
    assert run("delete", sweep_id).stdout == f"sweep {sweep_id} is deleted\n"


def test_what_is_no_limit_is_told(run: Run, live_fabricate: Fabricator) -> None:
    sweep_id = live_fabricate.claimed().sweep_id
    for text in ("much", "true", "None", ""):
        said = run("extend", sweep_id, "--max-seconds", text, status=2).stderr
        assert f"{text!r} is neither a number nor none" in said
        assert "--max-seconds" in said
    said = run("extend", sweep_id, "--max-concurrent-trials", "2.5", status=1).stderr
    assert "/max_concurrent_trials: should be a valid integer" in said
    for arguments in (["extend", sweep_id, "--priority", "nan"], ["enqueue", sweep_id, "temperature=NaN"]):
        assert "should be a finite number" in run(*arguments, status=1).stderr
