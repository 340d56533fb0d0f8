"""A page in a browser on this machine reads nothing here under a foreign name, and changes nothing."""

from typing import Any

import httpx2
import pytest
from conftest import DocumentedClient, ServiceProcess
from fabrication import Fabricator

from care_sweep.settings import Settings
from care_sweep.store import Store
from service.app import create_app
from service.origin import own_names


@pytest.fixture
def http(settings: Settings, store: Store) -> Any:
    names = own_names("127.0.0.1", "127.0.0.1")
    with DocumentedClient(create_app(settings, store, names=names), base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8484", "127.0.0.1:1", "[::1]", "[::1]:8484"])
def test_our_own_names(http: Any, host: str) -> None:
    assert http.get("/v1/sweeps", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8484", "127.0.0.1.nip.io", "[", ""])
def test_a_foreign_name_is_not_ours(http: Any, fabricate: Fabricator, host: str) -> None:
    sweep = fabricate.queued().id
    for method, path in (("GET", "/v1/sweeps"), ("POST", f"/v1/sweeps/{sweep}:cancel")):
        answer = http.request(method, path, headers={"Host": host, "Origin": f"http://{host}"})
        assert answer.status_code == 421
        assert answer.headers["content-type"] == "application/problem+json"
        assert "localhost" in answer.json()["detail"]
    assert fabricate.store.state(sweep) == "QUEUED"


@pytest.mark.parametrize("path", ["/openapi.json", "/docs", "/nowhere", "/v1/sweeps/", "/ray/", "/ray"])
def test_nor_where_no_route_is(http: Any, path: str) -> None:
    answer = http.get(path, headers={"Host": "evil.example"}, follow_redirects=False)
    assert (answer.status_code, answer.json()["title"]) == (421, "Misdirected request")
    assert "location" not in answer.headers


def test_no_slash_is_taken_away_or_added(http: Any) -> None:
    """An answer that leads on would name the Host that was sent."""
    assert http.get("/v1/sweeps/", follow_redirects=False).status_code == 404
    assert http.get("/ray", follow_redirects=False).headers["location"] == "ray/"


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost:3000", "null", "http://["])
def test_a_page_of_another_origin_changes_nothing(http: Any, fabricate: Fabricator, origin: str) -> None:
    sweep = fabricate.queued().id
    headers = {"Host": "localhost:8484", "Origin": origin}
    answer = http.post(f"/v1/sweeps/{sweep}:cancel", headers=headers)
    assert (answer.status_code, answer.json()["title"]) == (403, "Forbidden")
    assert fabricate.store.state(sweep) == "QUEUED"
    assert http.get(f"/v1/sweeps/{sweep}", headers=headers).status_code == 200  # browsers hide the answer
    own = {**headers, "Origin": "http://localhost:8484"}
    assert http.post(f"/v1/sweeps/{sweep}:cancel", headers=own).status_code == 200


def test_another_address_has_any_name() -> None:
    assert own_names("0.0.0.0", "0.0.0.0") is None  # noqa: S104
    assert own_names("node-1", "10.0.0.1") is None
    assert "my-laptop" in (own_names("my-laptop", "127.0.1.1") or ())


def test_the_process_knows_its_names(live: ServiceProcess) -> None:
    with httpx2.Client(base_url=live.url) as http:
        assert http.get("/v1/sweeps", headers={"Host": "evil.example"}).status_code == 421
