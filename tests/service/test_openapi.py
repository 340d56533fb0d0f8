"""The OpenAPI document: every route, every refusal as a problem, every answer as the client reads it."""

import base64
import hashlib
import re
import typing
from typing import Any

import pytest
from fastapi.testclient import TestClient

from care_sweep import answers

ROUTES = {
    "/v1/sweeps": {"get", "post"},
    "/v1/sweeps/{sweep_id}": {"get", "patch", "delete"},
    "/v1/sweeps/{sweep_id}:pause": {"post"},
    "/v1/sweeps/{sweep_id}:resume": {"post"},
    "/v1/sweeps/{sweep_id}:stop": {"post"},
    "/v1/sweeps/{sweep_id}:cancel": {"post"},
    "/v1/sweeps/{sweep_id}/best": {"get"},
    "/v1/sweeps/{sweep_id}/events": {"get"},
    "/v1/sweeps/{sweep_id}/export": {"get"},
    "/v1/sweeps/{sweep_id}/checkpoints/best": {"get"},
    "/v1/sweeps/{sweep_id}/trials": {"get", "post"},
    "/v1/sweeps/{sweep_id}/trials/{number}:stop": {"post"},
    "/v1/sweeps/{sweep_id}/trials/{number}": {"get"},
    "/v1/sweeps/{sweep_id}/trials/{number}/measurements": {"get"},
    "/v1/sweeps/{sweep_id}/trials/{number}/logs": {"get"},
    "/v1/sweeps/{sweep_id}/trials/{number}/checkpoint": {"get"},
    "/v1/search-spaces": {"get"},
    "/v1/search-spaces/{name}": {"get"},
    "/v1/cluster": {"get"},
    "/healthz": {"get"},
    "/readyz": {"get"},
    "/metrics": {"get"},
    "/ray/{path}": {"get"},
}


@pytest.fixture
def openapi(http: TestClient) -> dict[str, Any]:
    document: dict[str, Any] = http.get("/openapi.json").json()
    return document


def test_every_route_is_there(openapi: dict[str, Any], http: TestClient) -> None:
    assert {path: set(operations) for path, operations in openapi["paths"].items()} == ROUTES


def test_it_is_shown_to_a_person_without_a_script_or_a_network(
    openapi: dict[str, Any], http: TestClient
) -> None:
    answer = http.get("/", follow_redirects=True)
    assert (answer.url.path, answer.headers["content-type"]) == ("/docs", "text/html; charset=utf-8")
    for path in openapi["paths"]:
        assert f"<code>{path}</code>" in answer.text
    for name in openapi["components"]["schemas"]:
        assert f'<h3 id="{name}">' in answer.text
    (style,) = re.findall("<style>(.*)</style>", answer.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; frame-ancestors 'none'; style-src 'sha256-{digest}'"
    assert answer.headers["content-security-policy"] == policy
    assert set(re.findall(r'(?:src|href)="([^#"][^"]*)"', answer.text)) == {"openapi.json"}
    assert "<script" not in answer.text


def test_every_link_of_the_page_leads_somewhere(http: TestClient) -> None:
    page = http.get("/docs").text
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(re.findall(r'id="([^"]+)"', page))
    assert "<td>anything" not in page


def test_every_refusal_is_a_problem(openapi: dict[str, Any]) -> None:
    for operations in openapi["paths"].values():
        for operation in operations.values():
            assert operation["description"]
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert list(response["content"]) == ["application/problem+json"], (operation, status)


def test_every_reference_leads_somewhere(openapi: dict[str, Any]) -> None:
    def references(node: Any) -> list[str]:
        if isinstance(node, list):
            return [found for item in node for found in references(item)]
        if isinstance(node, dict):
            own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
            return own + [found for item in node.values() for found in references(item)]
        return []

    schemas = openapi["components"]["schemas"]
    for reference in references(openapi):
        assert reference.removeprefix("#/components/schemas/") in schemas, reference


def test_a_submission_is_described(openapi: dict[str, Any]) -> None:
    content = openapi["paths"]["/v1/sweeps"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "application/yaml"}
    space = openapi["components"]["schemas"]["SweepDocument"]["properties"]["space"]["anyOf"]
    assert {"type": "string"} in space
    sweep = openapi["components"]["schemas"]["SweepDocument"]["properties"]
    assert sweep["metric"]["enum"] == ["validation_knn_accuracy", "validation_probe_accuracy"]
    assert {"type": "string", "const": "none"} in sweep["early_stopping"]["anyOf"]
    answered = openapi["components"]["schemas"]["SweepSpec"]["properties"]["early_stopping"]
    assert answered["anyOf"] == [{"$ref": "#/components/schemas/EarlyStopping"}, {"type": "null"}]


@pytest.mark.parametrize("name", answers.__all__)
def test_the_client_reads_what_the_service_writes(openapi: dict[str, Any], name: str) -> None:
    described = openapi["components"]["schemas"].get(name)
    if name == "Event":  # its schema is of the stream's data, which OpenAPI does not name
        from service.schemas import Event

        described = Event.model_json_schema()
    assert set(typing.get_type_hints(getattr(answers, name))) == set(described["properties"])
