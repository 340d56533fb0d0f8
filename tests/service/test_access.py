"""Who may do what: a table over the OpenAPI document and every kind of caller, and how refusals look."""

import re
import time
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from conftest import DocumentedClient, Recorder, ServiceProcess, opened, service_process
from fabrication import Fabricator, document
from fastapi.testclient import TestClient
from sqlalchemy import select

from care_sweep.settings import Settings
from care_sweep.store import Caller, Quota, Scope, Store
from care_sweep.store.audit import newest_deeds
from care_sweep.store.database import reading
from care_sweep.store.schema import metadata
from service.access import Access
from service.app import create_app


class Kind(Enum):
    """Of an operation: what it asks of its caller, by the answer that each one gets."""

    OPEN = (200, 200, 200, 200, 200)
    ANYBODYS = (401, 200, 200, 200, 200)
    NEW = (401, 403, 200, 200, 200)
    LOOK = (401, 200, 200, 404, 200)
    WISH = (401, 403, 200, 404, 200)
    WATCH = (401, 403, 403, 403, 200)


CALLERS = ("nobody", "reader", "owner", "other", "admin")
"""The reader has a token of the sweep's owner that may only read."""

TABLE: Mapping[tuple[str, str], Kind] = {
    ("get", "/healthz"): Kind.OPEN,
    ("get", "/readyz"): Kind.OPEN,
    ("get", "/metrics"): Kind.WATCH,
    ("get", "/ray/{path}"): Kind.WATCH,
    ("get", "/v1/cluster"): Kind.ANYBODYS,
    ("get", "/v1/search-spaces"): Kind.ANYBODYS,
    ("get", "/v1/search-spaces/{name}"): Kind.ANYBODYS,
    ("get", "/v1/sweeps"): Kind.ANYBODYS,
    ("post", "/v1/sweeps"): Kind.NEW,
    ("get", "/v1/sweeps/{sweep_id}"): Kind.LOOK,
    ("get", "/v1/sweeps/{sweep_id}/best"): Kind.LOOK,
    ("get", "/v1/sweeps/{sweep_id}/checkpoints/best"): Kind.LOOK,
    ("get", "/v1/sweeps/{sweep_id}/events"): Kind.LOOK,
    ("get", "/v1/sweeps/{sweep_id}/export"): Kind.LOOK,
    ("get", "/v1/sweeps/{sweep_id}/trials"): Kind.LOOK,
    ("get", "/v1/sweeps/{sweep_id}/trials/{number}"): Kind.LOOK,
    ("get", "/v1/sweeps/{sweep_id}/trials/{number}/checkpoint"): Kind.LOOK,
    ("get", "/v1/sweeps/{sweep_id}/trials/{number}/logs"): Kind.LOOK,
    ("get", "/v1/sweeps/{sweep_id}/trials/{number}/measurements"): Kind.LOOK,
    ("patch", "/v1/sweeps/{sweep_id}"): Kind.WISH,
    ("delete", "/v1/sweeps/{sweep_id}"): Kind.WISH,
    ("post", "/v1/sweeps/{sweep_id}/trials"): Kind.WISH,
    ("post", "/v1/sweeps/{sweep_id}/trials/{number}:stop"): Kind.WISH,
    ("post", "/v1/sweeps/{sweep_id}:cancel"): Kind.WISH,
    ("post", "/v1/sweeps/{sweep_id}:pause"): Kind.WISH,
    ("post", "/v1/sweeps/{sweep_id}:resume"): Kind.WISH,
    ("post", "/v1/sweeps/{sweep_id}:stop"): Kind.WISH,
}

BODIES: Mapping[tuple[str, str], Any] = {
    ("post", "/v1/sweeps"): document(),
    ("patch", "/v1/sweeps/{sweep_id}"): {"num_trials": 6},
    ("post", "/v1/sweeps/{sweep_id}/trials"): {"parameters": {"temperature": 0.2}},
}


class Guarded:
    """A service that wants tokens, with a token for each kind of caller."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings, self.store = settings, store
        self.app = create_app(settings, store, requires_tokens=True)
        scopes = {"reader": Scope.READ, "owner": Scope.SUBMIT, "other": Scope.SUBMIT, "admin": Scope.ADMIN}
        self.tokens = {
            who: store.tokens.create("owner" if who == "reader" else who, scope, expires_in_seconds=None)[0]
            for who, scope in scopes.items()
        }
        self.owners = Fabricator(store.seen_by(Caller("owner", Scope.SUBMIT)), settings.storage_uri)

    def headers(self, who: str) -> dict[str, str]:
        return {} if who == "nobody" else {"Authorization": f"Bearer {self.tokens[who]}"}

    def sweep_for(self, operation: tuple[str, str]) -> str:
        """A sweep of the owner's, of which the operation can be asked."""
        method, path = operation
        if method in ("get", "delete"):
            return self.owners.finished()
        if path.endswith("{number}:stop"):
            lease = self.owners.claimed()
            lease.start_attempt(0, 1, {"temperature": 0.5}, is_baseline=True)
            return lease.sweep_id
        sweep = self.owners.queued().id
        if path.endswith(":resume"):
            self.store.control.pause(sweep)
        return sweep


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    environment = {
        "CARE_SWEEP_HOME": str(tmp_path_factory.mktemp("guarded")),
        "CARE_SWEEP_REQUESTS_PER_SECOND": "1000",
    }
    settings = Settings.from_environment(environment)
    with opened(settings) as store:
        yield Guarded(settings, store)


@pytest.fixture(scope="module")
def http(guarded: Guarded) -> Iterator[TestClient]:
    with DocumentedClient(guarded.app, raise_server_exceptions=False) as client:
        yield client


def _picture(store: Store) -> Mapping[str, Any]:
    with reading(store.engine) as connection:
        return {
            table.name: connection.execute(select(table).order_by(*table.primary_key)).all()
            for table in metadata.sorted_tables
        }


# --- the table ---


def test_the_table_has_every_operation(guarded: Guarded) -> None:
    """Who adds an endpoint says here who may use it."""
    paths = guarded.app.openapi()["paths"]
    operations = {(method, path) for path, methods in paths.items() for method in methods}
    assert set(TABLE) == operations


@pytest.mark.parametrize("who", CALLERS)
@pytest.mark.parametrize("operation", TABLE, ids=" ".join)
def test_each_caller_gets_what_the_table_says(
    guarded: Guarded, http: TestClient, recorder: Recorder, operation: tuple[str, str], who: str
) -> None:
    method, path = operation
    expected = TABLE[operation].value[CALLERS.index(who)]
    sweep = guarded.sweep_for(operation) if "{sweep_id}" in path else ""
    guarded.store.report_cluster("a runner", {"dashboard_url": recorder.url})
    before = _picture(guarded.store)

    def ask(sweep_id: str) -> Any:
        url = path.format(sweep_id=sweep_id, number=0, name="cifar10-mini", path="timezone")
        sent = {"json": BODIES[operation]} if operation in BODIES else {}
        return http.request(method, url, headers=guarded.headers(who), **sent)

    answer = ask(sweep)
    assert answer.status_code // 100 * 100 == expected or answer.status_code == expected, answer.text
    if expected == 200:
        return
    assert _picture(guarded.store) == before, "a refused request changes nothing"
    if sweep:
        assert answer.text.replace(sweep, "absent") == ask("absent").text, "foreign and absent look the same"
    assert ("www-authenticate" in answer.headers) == (expected in (401, 403))


def test_the_document_says_what_needs_a_token(guarded: Guarded) -> None:
    paths = guarded.app.openapi()["paths"]
    for (method, path), kind in TABLE.items():
        operation = paths[path][method]
        assert ("security" in operation) == ("401" in operation["responses"]) == (kind is not Kind.OPEN)


def test_a_list_has_ones_own_sweeps(guarded: Guarded, http: TestClient) -> None:
    sweep = guarded.owners.queued().id
    listed = {
        who: {one["id"] for one in http.get("/v1/sweeps", headers=guarded.headers(who)).json()["sweeps"]}
        for who in CALLERS[1:]
    }
    assert sweep in listed["reader"] & listed["owner"] & listed["admin"]
    assert sweep not in listed["other"]


def test_a_sweep_tells_its_owner_and_who_did_what_is_noted(guarded: Guarded, http: TestClient) -> None:
    answer = http.post("/v1/sweeps", json=document(), headers=guarded.headers("other")).json()
    assert answer["owner"] == "other"
    http.post(f"/v1/sweeps/{answer['id']}:cancel", headers=guarded.headers("admin"))
    told = [(d.owner, d.action, d.subject) for d in newest_deeds(guarded.store.engine, 2)]
    assert told == [("other", "submit", answer["id"]), ("admin", "cancel", answer["id"])]


def test_a_key_belongs_to_its_owner(guarded: Guarded, http: TestClient) -> None:
    def submit(who: str, name: str) -> Any:
        headers = guarded.headers(who) | {"Idempotency-Key": "the-same"}
        return http.post("/v1/sweeps", json=document(name=name), headers=headers)

    first, second = submit("owner", "mine"), submit("other", "another")
    assert (first.status_code, second.status_code) == (201, 201)
    assert submit("owner", "mine").json()["id"] == first.json()["id"]


def test_a_token_gets_no_more_sweeps_than_its_quota(guarded: Guarded, http: TestClient) -> None:
    quota = Quota(max_sweeps=1)
    text, _ = guarded.store.tokens.create("new", Scope.SUBMIT, expires_in_seconds=None, quota=quota)
    headers = {"Authorization": f"Bearer {text}"}
    assert http.post("/v1/sweeps", json=document(), headers=headers).status_code == 201
    refused = http.post("/v1/sweeps", json=document(), headers=headers)
    assert (refused.status_code, refused.json()["title"]) == (403, "Quota exceeded")
    assert "1 sweeps of this token have not ended, and its quota is 1" in refused.json()["detail"]
    checked = http.post("/v1/sweeps?validate_only=true", json=document(), headers=headers)
    assert checked.status_code == 200, "which makes none"


# --- refusals ---


@pytest.mark.parametrize(
    "header",
    ["Basic cm9vdDpyb290", "Bearer", "Bearer ", "Bearer cs_", "cs_x", "Bearer " + "x" * 5000, "Bearer ü"],
)
def test_what_is_no_token_is_refused_in_clear_words(http: TestClient, header: str) -> None:
    answer = http.get("/v1/sweeps", headers={"Authorization": header.encode("latin-1")})
    assert (answer.status_code, answer.json()["title"]) == (401, "Unauthorized")
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert "care-sweep token create" in answer.json()["detail"]
    assert "xxx" not in answer.text


def test_a_token_in_the_address_opens_nothing(guarded: Guarded, http: TestClient) -> None:
    token = guarded.tokens["admin"]
    for path in (f"/v1/sweeps?token={token}", f"/v1/sweeps?access_token={token}"):
        assert http.get(path).status_code == 401
    assert http.get("/v1/sweeps", headers={"Cookie": f"token={token}"}).status_code == 401


def test_a_scope_that_is_too_small_is_named(guarded: Guarded, http: TestClient) -> None:
    answer = http.post("/v1/sweeps", json=document(), headers=guarded.headers("reader"))
    assert answer.json()["detail"] == "the scope of this token is read, and this needs submit"
    assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]


def test_a_body_is_not_read_for_nobody(http: TestClient) -> None:
    answer = http.post("/v1/sweeps", content=b"x" * (2**20 + 1), headers={"Content-Type": "application/json"})
    assert answer.status_code == 401


def test_the_docs_page_takes_no_token(http: TestClient) -> None:
    assert http.get("/openapi.json").status_code == 200
    page = http.get("/docs")
    assert page.status_code == 200
    assert not re.search("<(script|form|input)", page.text)


def test_where_no_token_is_required_none_is_looked_at(settings: Settings, store: Store) -> None:
    with DocumentedClient(create_app(settings, store)) as http:
        made = http.post("/v1/sweeps", json=document(), headers={"Authorization": "Bearer cs_anything"})
        assert (made.status_code, made.json()["owner"]) == (201, "local")
        assert http.get("/docs").status_code == 200
    (deed,) = newest_deeds(store.engine, 10)
    assert (deed.owner, deed.token_id, deed.action) == ("local", None, "submit")


# --- revocation ---


class _Monotonic:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_revoked_token_opens_nothing_after_five_seconds(guarded: Guarded) -> None:
    async def story() -> None:
        clock = _Monotonic()
        access = Access(guarded.store.tokens, is_required=True, requests_per_second=100, monotonic=clock)
        text, made = guarded.store.tokens.create("brief", Scope.READ, expires_in_seconds=None)
        assert (await access.admit(text)).owner == "brief"
        guarded.store.tokens.revoke(made.id)
        clock.now += 5
        assert not await access.still_opens(text)
        with pytest.raises(Exception, match="revoked"):
            await access.admit(text)

    anyio.run(story)


@pytest.mark.slow
def test_an_open_stream_ends_with_its_token(tmp_path: Path) -> None:
    """In a real process: what was opened before is closed within five seconds, and cannot be opened again."""
    with service_process(tmp_path / "own", CARE_SWEEP_AUTH="required") as service:
        _see_streams_end(service)


def _see_streams_end(service: ServiceProcess) -> None:
    with opened(service.settings) as store:
        text, made = store.tokens.create("alice", Scope.SUBMIT, expires_in_seconds=None)
        fabricate = Fabricator(store.seen_by(Caller("alice", Scope.SUBMIT)), service.settings.storage_uri)
        lease = fabricate.claimed()
        lease.start_attempt(0, 1, {"temperature": 0.5}, is_baseline=True)
        fabricate.log(lease.sweep_id, 0, "it begins\n")
        here = f"/v1/sweeps/{lease.sweep_id}"
        headers = {"Authorization": f"Bearer {text}"}
        with (
            httpx2.Client(base_url=service.url, headers=headers, timeout=20) as http,
            http.stream("GET", f"{here}/events") as events,
            http.stream("GET", f"{here}/trials/0/logs?follow=true") as log,
        ):
            streams = [events.iter_lines(), log.iter_lines()]
            for stream in streams:
                assert next(stream)
            revoked_at = time.monotonic()
            store.tokens.revoke(made.id)
            for stream in streams:
                list(stream)
            assert time.monotonic() - revoked_at < 5
            assert http.get(here).status_code == 401
