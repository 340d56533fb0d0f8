"""A submission is accepted once, durably, as it was resolved."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from fabrication import SPACE, Fabricator, document
from fastapi.testclient import TestClient

from care_sweep.settings import Settings


def test_json_and_yaml_make_the_same_sweep(http: TestClient) -> None:
    first = http.post("/v1/sweeps", json=document())
    assert first.status_code == 201
    sweep = first.json()
    assert first.headers["location"] == f"/v1/sweeps/{sweep['id']}" == sweep["links"]["self"]
    assert http.get(first.headers["location"]).json() == sweep
    assert (sweep["state"], sweep["num_trials"], sweep["trial_counts"]) == ("QUEUED", 4, {})
    assert sweep["created_at"].endswith("Z")
    for media_type in ("application/yaml", "application/x-yaml; charset=utf-8", "text/yaml"):
        second = http.post(
            "/v1/sweeps", content=yaml.safe_dump(document()), headers={"Content-Type": media_type}
        )
        assert second.status_code == 201
        assert second.json()["spec"] == sweep["spec"]


def test_a_named_space_is_written_out(http: TestClient) -> None:
    for space in http.get("/v1/search-spaces").json()["search_spaces"]:
        assert http.get(f"/v1/search-spaces/{space['name']}").json() == space
        asked = {"name": "a", "space": space["name"], "num_trials": 10}
        answer = http.post("/v1/sweeps?validate_only=true", json=asked)
        if space["name"] == "cifar10-mini":
            assert answer.json()["spec"]["space"] == space
        else:  # its images are not on this machine
            assert answer.status_code == 422
            assert answer.json()["problems"][0]["pointer"] == "/space/fixed/dataset"


def test_validate_only_writes_nothing(http: TestClient) -> None:
    headers = {"Idempotency-Key": "k"}
    answer = http.post("/v1/sweeps?validate_only=true", json=document(), headers=headers)
    assert answer.status_code == 200
    assert answer.json()["spec"]["early_stopping"] == {"grace_epochs": 5, "reduction_factor": 4}
    assert http.get("/v1/sweeps").json() == {"sweeps": [], "next_page_token": None}
    assert (
        http.post("/v1/sweeps", json=document(), headers=headers).status_code == 201
    )  # the key was not spent


def test_a_key_makes_one_sweep(http: TestClient) -> None:
    headers = {"Idempotency-Key": "one"}
    first = http.post("/v1/sweeps", json=document(), headers=headers)
    again = http.post("/v1/sweeps", json=document(), headers=headers)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert first.headers["location"] == again.headers["location"]
    other = http.post("/v1/sweeps", json=document(num_trials=5), headers=headers)
    assert other.status_code == 422
    assert other.json()["type"] == "urn:care-sweep:problem:idempotency-key-reused"
    assert len(http.get("/v1/sweeps").json()["sweeps"]) == 1


def test_a_key_answers_whatever_has_become_of_the_world(
    http: TestClient, settings: Settings, fabricate: Fabricator
) -> None:
    folder: Path = settings.data_roots[0] / "mine"
    folder.mkdir(parents=True)
    asked = document(space__fixed={"dataset": "folder:mine"}, resources={"cpus_per_trial": 8})
    headers = {"Idempotency-Key": "one"}
    first = http.post("/v1/sweeps", json=asked, headers=headers)
    folder.rmdir()
    node = {"id": "a", "host": "one", "is_alive": True, "resources": {"cpus": 2.0}}
    fabricate.store.report_cluster("a runner", {"nodes": [node]})
    again = http.post("/v1/sweeps", json=asked, headers=headers)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert http.post("/v1/sweeps", json=asked).status_code == 422


def test_eight_at_once_under_one_key(http: TestClient) -> None:
    def submit(_: int) -> Any:
        return http.post("/v1/sweeps", json=document(), headers={"Idempotency-Key": "same"})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(submit, range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(http.get("/v1/sweeps").json()["sweeps"]) == 1


@pytest.mark.parametrize("relative", [True, False])
def test_images_below_a_root_are_accepted(http: TestClient, settings: Settings, relative: bool) -> None:
    folder: Path = settings.data_roots[0] / "mine"
    folder.mkdir(parents=True)
    name = "folder:mine" if relative else f"folder:{folder}"
    space = {**SPACE, "fixed": {"dataset": name}}
    assert http.post("/v1/sweeps", json=document(space=space)).status_code == 201


def test_a_link_out_of_the_roots_is_not(http: TestClient, settings: Settings, tmp_path: Path) -> None:
    settings.data_roots[0].mkdir(parents=True)
    (settings.data_roots[0] / "link").symlink_to(tmp_path)
    space = {**SPACE, "fixed": {"dataset": "folder:link"}}
    answer = http.post("/v1/sweeps", json=document(space=space))
    assert answer.status_code == 422
    assert "outside the data roots" in answer.json()["detail"]


def test_images_of_mixed_sizes_need_a_size(http: TestClient, settings: Settings) -> None:
    (settings.data_roots[0] / "imagenet").mkdir(parents=True)
    asked = document(space__fixed={"dataset": "imagenet100:imagenet", "encoder": "resnet18"})
    refused = http.post("/v1/sweeps?validate_only=true", json=asked)
    assert refused.status_code == 422
    (problem,) = refused.json()["problems"]
    assert problem["pointer"] == "/space/fixed/dataset"
    assert "give `resize`" in problem["detail"]
    asked["space"]["fixed"]["resize"] = 224
    assert http.post("/v1/sweeps?validate_only=true", json=asked).status_code == 200
