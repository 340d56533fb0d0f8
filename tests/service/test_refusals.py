"""Every bad input: the right 4xx, a pointer, a sentence that helps, no traceback, and the service goes on."""

import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fabrication import SPACE, Fabricator, document
from fastapi.testclient import TestClient

from care_sweep.store import Store

MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def _keeps_serving_in_silence(http: TestClient, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert http.get("/readyz").status_code == 200
    assert not [r for r in caplog.records if r.exc_info or r.levelno >= logging.ERROR]


def _refusal(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    assert problem["type"].startswith("urn:care-sweep:problem:")
    assert problem["title"] and problem["detail"]
    assert problem["instance"] == response.request.url.path
    return problem


def _searching(**parameter: Any) -> dict[str, Any]:
    """The changes that leave one parameter, with these keys of its own."""
    parameters = {"temperature": {"type": "float", "low": 0.1, "high": 1.0, **parameter}}
    return {"space__parameters": parameters, "space__baselines": []}


@pytest.mark.parametrize(
    ("changes", "pointer", "sentence"),
    [
        ({"num_trails": 3}, "/num_trails", "did you mean 'num_trials'"),
        ({"space__parameter": {}}, "/space/parameter", "did you mean 'parameters'"),
        (_searching(low=2.0), "/space/parameters/temperature/low", "below high"),
        (_searching(low=0, log=True), "/space/parameters/temperature/low", "above 0"),
        (_searching(when={"encodr": "x"}), "/space/parameters/temperature/when/encodr", "unknown"),
        ({"space__parameters": {}}, "/space/parameters", "at least 1"),
        ({"num_trials": 0}, "/num_trials", "greater than or equal to 1"),
        ({"num_trials": None}, "/num_trials", "integer"),
        ({"name": "a\nb"}, "/name", "printable"),
        ({"space": 3}, "/space", "must be a mapping with keys of name, description, parameters"),
        ({"resources": {"gpus_per_trial": "all"}}, "/resources/gpus_per_trial", "a valid number or 'auto'"),
        ({"metric": "train_loss"}, "/metric", "validation_knn_accuracy"),
        ({"space": "cifar-nought"}, "/space", "unknown"),
        ({"space__fixed": {"dataset": "cifar10"}}, "/space/fixed/dataset", "--download"),
        ({"space__fixed": {"dataset": "imagenet"}}, "/space/fixed/dataset", "use one of"),
        ({"space__fixed": {"dataset": "folder:/etc"}}, "/space/fixed/dataset", "outside the data roots"),
        ({"space__fixed": {"dataset": "imagenet100:/etc"}}, "/space/fixed/dataset", "outside the data roots"),
        ({"space__fixed": {"dataset": "flowers102"}}, "/space/fixed/dataset", "--download"),
        ({"space__fixed": {"dataset": "parquet:../../etc"}}, "/space/fixed/dataset", "outside the data root"),
        ({"space__fixed": {"dataset": "folder:a\0b"}}, "/space/fixed/dataset", ""),
        ({"space__fixed": {"dataset": "folder:" + "a" * 900}}, "/space/fixed/dataset", ""),
        ({"space__fixed": {"dataset": "folder:~nobody-of-that-name/x"}}, "/space/fixed/dataset", ""),
    ],
)  # fmt: skip
def test_a_bad_document_is_pointed_at(http: TestClient, changes: Any, pointer: str, sentence: str) -> None:
    problem = _refusal(http.post("/v1/sweeps", json=document(**changes)), 422)
    found = {place["pointer"]: place["detail"] for place in problem["problems"]}
    assert pointer in found, problem
    assert sentence in found[pointer]
    assert http.get("/v1/sweeps").json()["sweeps"] == []


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_none_is_pointed_at(http: TestClient, word: str) -> None:
    text = json.dumps(document()).replace('"low": 0.05', f'"low": {word}')
    problem = _refusal(_post(http, text), 422)
    assert problem["problems"][0]["pointer"] == "/space/parameters/temperature/low"


@pytest.mark.parametrize(
    ("text", "media_type", "line"),
    [
        ('{"name": "a",\n "num_trials" 3}', "application/json", "line 2"),
        ("name: a\nspace: [", "application/yaml", "line 2"),
        ("a: &x 1\nb: *x", "application/yaml", "line 1"),
        ('{"name": "a", "name": "b"}', "application/json", "line 1"),
        (b"\xff\xfe", "application/json", "line 1"),
    ],
)
def test_malformed_text_has_line_and_column(http: TestClient, text: Any, media_type: str, line: str) -> None:
    problem = _refusal(_post(http, text, media_type), 422)
    assert line in problem["detail"]
    assert "column" in problem["detail"]


@pytest.mark.parametrize(
    "text", ["", "[1]", "12", '"a"', "[" * 100_000, '{"name": "\\ud800"}', '{"a": ' + "9" * 5000 + "}"]
)
def test_what_is_no_sweep_at_all(http: TestClient, text: str) -> None:
    assert _refusal(_post(http, text), 422)["problems"]


def test_a_body_over_a_mebibyte(http: TestClient) -> None:
    assert "1048576" in _refusal(_post(http, " " * (MIB + 1)), 413)["detail"]
    chunks = (b" " * 65536 for _ in range(20))  # without a Content-Length
    _refusal(http.post("/v1/sweeps", content=chunks, headers={"Content-Type": "application/json"}), 413)


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_of_another_type(http: TestClient, media_type: str) -> None:
    assert "application/yaml" in _refusal(_post(http, json.dumps(document()), media_type), 415)["detail"]


@pytest.mark.parametrize("key", ["", "a b", "ü", "k" * 256])
def test_an_idempotency_key_that_is_none(http: TestClient, key: str) -> None:
    headers = {"Idempotency-Key": key.encode()}
    problem = _refusal(http.post("/v1/sweeps", json=document(), headers=headers), 422)
    assert problem["problems"][0]["pointer"] == "/header/Idempotency-Key"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/sweeps/nowhere",
        "/v1/sweeps/%00",
        "/v1/sweeps/" + "a" * 5000,
        "/v1/sweeps/nowhere/trials",
        "/v1/sweeps/nowhere/trials/0",
        "/v1/sweeps/nowhere/trials/0/measurements",
        "/v1/sweeps/nowhere/trials/0/logs",
        "/v1/sweeps/nowhere/trials/0/checkpoint",
        "/v1/sweeps/nowhere/checkpoints/best",
        "/v1/sweeps/nowhere/best",
        "/v1/sweeps/nowhere/events",
        "/v1/search-spaces/nowhere",
        "/v1/search-spaces/..%2f..%2fetc%2fpasswd",
        "/v2/sweeps",
    ],
)
def test_what_is_not_there(http: TestClient, path: str) -> None:
    _refusal(http.get(path), 404)


@pytest.mark.parametrize("number", ["7", "-1", "abc", "1.5", "9" * 30])
def test_a_trial_that_is_not_there(http: TestClient, fabricate: Fabricator, number: str) -> None:
    sweep = fabricate.queued().id
    for rest in ("", "/measurements", "/logs", "/checkpoint"):
        _refusal(http.get(f"/v1/sweeps/{sweep}/trials/{number}{rest}"), 404)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_a_method_that_is_not_for_it(http: TestClient, method: str) -> None:
    response = http.request(method, "/v1/sweeps")
    assert method in _refusal(response, 405)["detail"]
    assert response.headers["allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE"])
def test_a_verb_that_is_not_there(http: TestClient, fabricate: Fabricator, method: str) -> None:
    """Otherwise the path would be that of a sweep, which takes other methods."""
    here = f"/v1/sweeps/{fabricate.queued().id}"
    for path in (f"{here}:extend", f"{here}/trials/0:retry", f"{here}:pause:pause"):
        problem = _refusal(http.request(method, path), 404)
        assert problem["detail"] == f"there is no {path}; /openapi.json lists what there is"
    if method != "POST":
        response = http.request(method, f"{here}:pause")
        assert (_refusal(response, 405)["detail"], response.headers["allow"]) == (
            f"{method} is not for {here}:pause; use POST",
            "POST",
        )


@pytest.mark.parametrize(
    "query",
    [
        "page_size=0",
        "page_size=-1",
        "page_size=1000000000",
        "page_size=x",
        "page_token=x",
        "page_token=",
        "state=RUNNIN",
        "page_token=" + "9" * 30,
    ],
)
def test_a_bad_page(http: TestClient, fabricate: Fabricator, query: str) -> None:
    for path in ("/v1/sweeps", f"/v1/sweeps/{fabricate.queued().id}/trials"):
        problem = _refusal(http.get(f"{path}?{query}"), 422)
        assert problem["problems"][0]["pointer"] == "/query/" + query.partition("=")[0] + (
            "/0" if query.startswith("state") else ""
        )


def test_bad_parameters_elsewhere(http: TestClient, fabricate: Fabricator) -> None:
    sweep = f"/v1/sweeps/{fabricate.finished()}"
    for query in (
        "best?k=0",
        "best?k=x",
        "trials/0/logs?attempt=0",
        "events?after=-1",
        "events?after=" + "9" * 30,
    ):
        _refusal(http.get(f"{sweep}/{query}"), 422)
    _refusal(http.get(f"{sweep}/events", headers={"Last-Event-ID": "abc"}), 422)
    _refusal(http.get(f"{sweep}/trials/0/logs?attempt=2"), 404)


def test_a_parameter_that_no_route_knows(http: TestClient, fabricate: Fabricator) -> None:
    problem = _refusal(http.post("/v1/sweeps?validate-only=true", json=document()), 422)
    assert problem["problems"][0]["pointer"] == "/query/validate-only"
    assert "validate_only" in problem["detail"]
    assert http.get("/v1/sweeps").json()["sweeps"] == [], "and no sweep was started"
    _refusal(http.get(f"/v1/sweeps/{fabricate.queued().id}?verbose=1"), 422)


def test_a_parameter_that_says_two_things(http: TestClient) -> None:
    answer = http.post("/v1/sweeps?validate_only=true&validate_only=false", json=document())
    assert _refusal(answer, 422)["problems"] == [
        {"pointer": "/query/validate_only", "detail": "give it once", "value": '["true", "false"]'}
    ]
    assert http.get("/v1/sweeps").json()["sweeps"] == [], "and no sweep was started"
    assert http.get("/v1/sweeps?state=QUEUED&state=RUNNING").status_code == 200


@pytest.mark.parametrize(
    "changes",
    [
        {f"key {number}": 1 for number in range(60_000)},
        {"space__fixed": {f"key {number}": 1 for number in range(60_000)}},
        {"space__parameters": {f"key {number}": 1 for number in range(60_000)}},
        {"space__baselines": [{f"key {number}": 1 for number in range(99)}] * 100},
        {"x" * 900_000: 1},
    ],
    ids=["unknown keys", "fixed", "parameters", "baselines", "a long key"],
)
def test_many_mistakes_are_answered_in_few_words(http: TestClient, changes: Any) -> None:
    body = json.dumps(document(**changes))
    assert len(body) < MIB
    answer = _post(http, body)
    assert _refusal(answer, 422)["problems"]
    assert len(answer.content) < 16_384


def test_many_unknown_parameters(http: TestClient) -> None:
    answer = http.get("/v1/sweeps?" + "&".join(f"parameter{number}=1" for number in range(3000)))
    assert "more unknown" in _refusal(answer, 422)["problems"][-1]["detail"]
    assert len(answer.content) < 16_384


def test_cancel_of_what_has_ended(http: TestClient, fabricate: Fabricator) -> None:
    problem = _refusal(http.post(f"/v1/sweeps/{fabricate.finished()}:cancel"), 409)
    assert "SUCCEEDED" in problem["detail"]
    _refusal(http.post("/v1/sweeps/nowhere:cancel"), 404)


def test_resources_that_the_cluster_can_never_meet(http: TestClient, fabricate: Fabricator) -> None:
    greedy = document(resources={"cpus_per_trial": 64, "gpus_per_trial": 1})
    assert http.post("/v1/sweeps?validate_only=true", json=greedy).status_code == 200  # nobody knows better
    nodes = [
        {"id": "a", "host": "one", "is_alive": True, "resources": {"cpus": 8.0}},
        {"id": "b", "host": "two", "is_alive": False, "resources": {"cpus": 128.0, "gpus": 8.0}},
    ]
    fabricate.store.report_cluster("a runner", {"nodes": nodes})
    problem = _refusal(http.post("/v1/sweeps", json=greedy), 422)
    assert [place["pointer"] for place in problem["problems"]] == [
        "/resources/cpus_per_trial",
        "/resources/gpus_per_trial",
    ]
    assert "8 CPUs" in problem["problems"][0]["detail"]
    assert "0 GPUs, and a trial does not span two" in problem["problems"][1]["detail"]
    for gpus in ("auto", 0):
        modest = document(resources={"cpus_per_trial": 8, "gpus_per_trial": gpus})
        assert http.post("/v1/sweeps?validate_only=true", json=modest).status_code == 200


def test_a_cluster_without_workers_refuses_nothing(http: TestClient, fabricate: Fabricator) -> None:
    """As one has that scales down to its head, or whose workers start again."""
    nodes: list[dict[str, Any]] = [
        {"id": "head", "host": "one", "is_alive": True, "resources": {"memory_bytes": 1e9}},
        {"id": "runner", "host": "two", "is_alive": True, "resources": {"cpus": 0.0, "gpus": 0.0}},
        {"id": "worker", "host": "three", "is_alive": False, "resources": {"cpus": 8.0}},
    ]
    fabricate.store.report_cluster("a runner", {"nodes": nodes})
    asked = document(resources={"cpus_per_trial": 16, "gpus_per_trial": 1})
    assert http.post("/v1/sweeps", json=asked).status_code == 201
    nodes[2]["is_alive"] = True
    fabricate.store.report_cluster("a runner", {"nodes": nodes})
    assert http.post("/v1/sweeps", json=asked).status_code == 422


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_cluster_of_another_time_is_not_known(
    http: TestClient, fabricate: Fabricator, seconds: int
) -> None:
    """Its runner may have died an hour ago, with a clock that was an hour ahead."""
    reporting = Store(fabricate.store.engine, lambda: time.time() + seconds)
    node = {"id": "a", "host": "one", "is_alive": True, "resources": {"cpus": 2.0}}
    reporting.report_cluster("a runner", {"nodes": [node]})
    greedy = document(resources={"cpus_per_trial": 64})
    assert http.post("/v1/sweeps?validate_only=true", json=greedy).status_code == 200
    assert http.get("/v1/cluster").json()["age_seconds"] >= 0


def test_every_problem_is_told_at_once(http: TestClient) -> None:
    bad = document(num_trials=0, seed=-1, space={**SPACE, "parameters": {}})
    problem = _refusal(http.post("/v1/sweeps", json=bad), 422)
    assert {place["pointer"] for place in problem["problems"]} == {
        "/num_trials",
        "/seed",
        "/space/parameters",
    }
    assert problem["detail"] == "the document has 3 problems"


def _post(http: TestClient, text: str | bytes, media_type: str = "application/json") -> Any:
    headers = {"Content-Type": media_type}
    return http.post("/v1/sweeps", content=text, headers=headers if media_type else {})
