"""Ray's dashboard at /ray/: what is shown of it, to whom, and that nothing else ever reaches it."""

import base64
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import DocumentedClient, Recorder
from fastapi.testclient import TestClient

from care_sweep.settings import Settings
from care_sweep.store import Scope, Store
from service import ray_proxy
from service.app import create_app

NODE, WORKER = "b2" * 28, "c3" * 28
LOG = f"worker-{WORKER}-02000000-123.out"

SHOWN = [
    "",
    "favicon.ico",
    "static/js/main.84605326.js",
    "static/media/roboto-latin-400.f5b74d7ffcdf85b9dd60.woff2",
    "timezone",
    "api/authentication_mode",
    "api/v0/cluster_metadata",
    "api/cluster_status?format=1",
    "nodes?view=summary",
    f"nodes/{NODE}",
    "logical/actors",
    "logical/actors/a1",
    "api/jobs/",
    "api/jobs/02000000",
    "events?job_id=02000000",
    "api/v0/tasks?detail=1&limit=10000&filter_keys=job_id&filter_predicates=%3D&filter_values=02000000",
    "api/v0/placement_groups?detail=1&limit=10000",
    f"api/v0/logs/file?node_id={NODE}&filename={LOG}&lines=50000",
    "api/v0/logs/file?actor_id=a1&suffix=err&lines=100",
]

HIDDEN = [
    # they run something: a profiler in a worker, an actor, a job, a wait
    "worker/traceback?pid=1&ip=127.0.0.1",
    "worker/cpu_profile?pid=1",
    "worker/gpu_profile?pid=1",
    "worker/jax_profile?pid=1",
    "task/traceback?task_id=1",
    "task/cpu_profile?task_id=1",
    "memory_profile?pid=1",
    "api/data/datasets/02000000",
    "api/v0/delay/5",
    "api/serve/applications/",
    "test/dump",
    # they hand out code, or more than the pages need
    "api/packages/gcs/package.zip",
    "api/v0/tasks/timeline?download=1",
    "api/prometheus/sd",
    "api/jobs/02000000/logs",
    "api/jobs/02000000/logs/tail",
    # logs that are not of workers, or are none
    f"api/v0/logs?node_id={NODE}",
    f"api/v0/logs/stream?node_id={NODE}&filename={LOG}",
    f"api/v0/logs/file?node_id={NODE}&filename=raylet.out",
    f"api/v0/logs/file?node_id={NODE}&filename=dashboard.log",
    f"api/v0/logs/file?node_id={NODE}&filename=runtime_env_setup-01000000.log",
    f"api/v0/logs/file?node_id={NODE}&filename=../{LOG}",
    f"api/v0/logs/file?node_id={NODE}&filename=%2Fetc%2Fpasswd",
    f"api/v0/logs/file?node_id={NODE}&filename={LOG}&filename=raylet.out",
    f"api/v0/logs/file?node_id={NODE}&filename={LOG}%0A",
    f"api/v0/logs/file?node_id={NODE}&filename={LOG}&interval=1",
    "api/v0/logs/file?actor_id=a1&suffix=out&pid=1",
    "api/v0/logs/file?actor_id=a1",
    "api/v0/logs/file?submission_id=raysubmit_1",
    "api/v0/logs/file",
    # queries that the pages do not make
    "nodes?view=summary&token=x",
    "timezone?x=1",
    f"nodes?view={'x' * 400}",
    # other ways of writing a path
    "static/js/../../api/packages/gcs/package.zip",
    "static/js/%2e%2e/%2e%2e/api/packages/gcs/package.zip",
    "static/js/..%2f..%2fapi%2fpackages",
    "static/js/%252e%252e/x",
    "static/js/.hidden",
    "static/js//main.js",
    "static/js/main.js/",
    "static/js/",
    "nodes%3Fview=summary",
    "nodes%2F" + NODE,
    "%6eodes",
    "nodes;x=1",
    "nodes/" + NODE.upper(),
    "logical/actors/a1/..",
    "/timezone",
    "./timezone",
    "timezone/",
    "timezone%00",
    "timezone%0d%0aX:1",
    "http://127.0.0.1:1/timezone",
    "//127.0.0.1:1/timezone",
    "@127.0.0.1:1/timezone",
    "\\timezone",
    "API/jobs/",
    "api/jobs",
    "api/jobs/a/b",
]


@pytest.fixture
def token_path(tmp_path: Path) -> Path:
    path = tmp_path / "ray-token"
    path.write_text("the-secret-of-ray\n")
    return path


@pytest.fixture
def settings(tmp_path: Path, token_path: Path) -> Settings:
    return Settings.from_environment(
        {"CARE_SWEEP_HOME": str(tmp_path / "home"), "RAY_AUTH_TOKEN_PATH": str(token_path)}
    )


@pytest.fixture
def tell(store: Store, recorder: Recorder) -> Callable[[str], None]:
    """Have a runner tell of a dashboard; that of these tests to begin with."""

    def tell(address: str) -> None:
        store.report_cluster("a runner", {"dashboard_url": address})

    tell(recorder.url)
    return tell


@pytest.fixture
def http(settings: Settings, store: Store, tell: Callable[[str], None]) -> Iterator[TestClient]:
    with DocumentedClient(create_app(settings, store), raise_server_exceptions=False) as client:
        yield client


def _send(http: TestClient, method: str, path: str) -> int:
    """As a client would that does not tidy up what it is told to ask for."""
    raw_path, _, query = f"/ray/{path}".partition("?")
    statuses: list[int] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, object]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(int(str(message["status"])))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(raw_path),
        "raw_path": raw_path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    assert http.portal is not None
    http.portal.call(http.app, scope, receive, send)
    return statuses[0]


def test_what_the_pages_need_is_shown(http: TestClient, recorder: Recorder) -> None:
    for path in SHOWN:
        content_type = "application/json" if path else "text/html"
        recorder.answer = (200, {"Content-Type": content_type}, b"an answer")
        answer = http.get(f"/ray/{path}")
        assert (answer.status_code, answer.content) == (200, b"an answer"), path
        assert recorder.arrived.pop().path == f"/{path}"


def test_nothing_else_arrives(http: TestClient, recorder: Recorder) -> None:
    for path in HIDDEN:
        assert _send(http, "GET", path) == 404, path
        assert recorder.arrived == [], path
    assert _send(http, "GET", "timezone") == 200


def test_no_other_method_arrives(http: TestClient, recorder: Recorder) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"):
        for path in ("", "timezone", "api/jobs/", "api/jobs/02000000/stop", "api/authenticate"):
            assert _send(http, method, path) == 405, (method, path)
    assert recorder.arrived == []


def test_what_head_asks_for_arrives_as_get(http: TestClient, recorder: Recorder) -> None:
    assert _send(http, "HEAD", "timezone") == 200
    assert [asked.method for asked in recorder.arrived] == ["GET"]
    assert _send(http, "HEAD", "worker/traceback?pid=1") == 404


def test_a_request_brings_nothing_of_its_own(http: TestClient, recorder: Recorder) -> None:
    """No header, no cookie, no body: only Ray's token, which the service adds."""
    headers = {
        "Authorization": "Bearer mine",
        "Cookie": "ray-authentication-token=mine",
        "X-Ray-Authorization": "Bearer mine",
        "X-Forwarded-For": "mine",
        "Range": "bytes=0-1",
        "Content-Type": "mine",
    }
    answer = http.request("GET", "/ray/timezone", headers=headers, content=b"mine")
    assert answer.status_code == 200
    (asked,) = recorder.arrived
    assert (asked.method, asked.body) == ("GET", b"")
    assert "mine" not in str(asked)
    assert asked.headers["Authorization"] == "Bearer the-secret-of-ray"
    assert set(asked.headers) <= {
        "Host",
        "Accept",
        "Accept-Encoding",
        "Connection",
        "User-Agent",
        "Authorization",
    }


def test_an_answer_brings_its_body_and_type_alone(http: TestClient, recorder: Recorder) -> None:
    headers = {
        "Content-Type": "application/json; charset=utf-8",
        "Set-Cookie": "theirs=1",
        "Authorization": "Bearer theirs",
        "Content-Security-Policy": "theirs",
        "Access-Control-Allow-Origin": "theirs",
        "Location": "theirs",
        "X-Anything": "theirs",
    }
    recorder.answer = (200, headers, b"{}")
    answer = http.get("/ray/timezone")
    assert answer.headers["content-type"] == "application/json"
    assert "theirs" not in str(answer.headers)
    assert "the-secret-of-ray" not in str(answer.headers) + answer.text


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (302, {"Location": "/worker/traceback?pid=1", "Content-Type": "text/plain"}),
        (401, {"Content-Type": "text/plain"}),
        (500, {"Content-Type": "application/json"}),
        (200, {"Content-Type": "text/html"}),
        (200, {}),
    ],
    ids=["elsewhere", "refused", "broken", "a page", "nothing said"],
)
def test_an_answer_that_is_none_of_the_pages_is_not_shown(
    http: TestClient, recorder: Recorder, status: int, headers: dict[str, str]
) -> None:
    recorder.answer = (status, headers, b"an answer")
    answer = http.get("/ray/timezone", follow_redirects=False)
    assert (answer.status_code, len(recorder.arrived)) == (502, 1)
    assert "an answer" not in answer.text


def test_what_ray_has_not_is_not_there(http: TestClient, recorder: Recorder) -> None:
    recorder.answer = (404, {"Content-Type": "application/json"}, b"{}")
    assert http.get("/ray/nodes/ab").status_code == 404
    assert len(recorder.arrived) == 1


def test_an_answer_without_end_is_not_held(
    http: TestClient, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_proxy, "_MOST_BYTES", 100_000)
    for size, status in ((100_000, 200), (100_001, 502)):
        recorder.answer = (200, {"Content-Type": "text/plain"}, b"x" * size)
        assert http.get("/ray/timezone").status_code == status


def test_a_dashboard_that_does_not_answer_is_not_waited_for(
    http: TestClient, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_proxy, "_MOST_SECONDS", 0.2)
    monkeypatch.setattr(Recorder, "get_request", lambda _: time.sleep(0.01) or _never())
    assert http.get("/ray/timezone").status_code == 504


def _never() -> None:
    raise OSError("nobody is let in")


def test_so_many_are_asked_for_at_once(http: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_proxy, "_MOST_AT_ONCE", 0)
    assert http.get("/ray/timezone").status_code == 503


# --- where it is ---


UNFIT = [
    "https://127.0.0.1:{port}",
    "http://127.0.0.1:{port}/api",
    "http://127.0.0.1:{port}?x=",
    "http://127.0.0.1:{port}#",
    "http://user@127.0.0.1:{port}",
    "http://127.0.0.1:{port}\n",
    "http://127.0.0.1",
    "http://169.254.169.254:80",
    "http://[fe80::1]:80",
    "http://0.0.0.0:{port}",
    "http://[::]:{port}",
    "http://224.0.0.1:80",
    "file:///etc/passwd",
    "",
]


def test_an_unfit_address_is_not_asked(
    http: TestClient, recorder: Recorder, tell: Callable[[str], None]
) -> None:
    for address in UNFIT:
        tell(address.format(port=recorder.server_port))
        assert http.get("/ray/timezone").status_code == 404, address
    assert recorder.arrived == []


def test_an_address_that_no_runner_tells_of_any_more_is_not_asked(
    http: TestClient, recorder: Recorder, store: Store
) -> None:
    """Another's process may have the port by now, and would be given Ray's token."""
    store.clock = lambda: time.time() + 61
    assert http.get("/ray/timezone").status_code == 404
    assert recorder.arrived == []


def test_nobody_is_there(http: TestClient, tell: Callable[[str], None]) -> None:
    tell("http://127.0.0.1:1")
    assert http.get("/ray/timezone").status_code == 502


def test_without_a_token_none_is_shown(http: TestClient, recorder: Recorder, token_path: Path) -> None:
    token_path.unlink()
    assert http.get("/ray/timezone").status_code == 503
    assert recorder.arrived == []


# --- who may look ---


def _password(text: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"anybody:{text}".encode()).decode()}


@pytest.fixture
def guarded(settings: Settings, store: Store, tell: Callable[[str], None]) -> Iterator[TestClient]:
    app = create_app(settings, store, requires_tokens=True)
    with DocumentedClient(app, raise_server_exceptions=False) as client:
        yield client


def test_a_browser_is_asked_for_a_password_which_is_an_admins_token(
    guarded: TestClient, store: Store, recorder: Recorder
) -> None:
    refused = guarded.get("/ray/timezone")
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Basic realm=")
    for scope, status in ((Scope.METRICS, 403), (Scope.READ, 403), (Scope.SUBMIT, 403), (Scope.ADMIN, 200)):
        text, _ = store.tokens.create("somebody", scope, expires_in_seconds=None)
        for headers in (_password(text), {"Authorization": f"Bearer {text}"}):
            assert guarded.get("/ray/timezone", headers=headers).status_code == status
    assert len(recorder.arrived) == 2
    assert "cs_" not in str(recorder.arrived)


@pytest.mark.parametrize("sent", ["%%%", "", "ü", "bm8tY29sb24=", "Og==", "/w=="])
def test_a_password_that_cannot_be_read_is_refused_as_any_other(
    guarded: TestClient, caplog: pytest.LogCaptureFixture, sent: str
) -> None:
    answer = guarded.get("/ray/timezone", headers={"Authorization": f"Basic {sent}".encode("latin-1")})
    assert (answer.status_code, answer.json()["title"]) == (401, "Unauthorized")
    assert answer.headers["www-authenticate"].startswith("Basic realm=")
    assert "care-sweep token create" in answer.json()["detail"]
    assert "refused 401: GET /ray/timezone" in caplog.text


def test_a_password_opens_nothing_else(guarded: TestClient, store: Store) -> None:
    """A browser sends it by itself, so no page may command the service with it."""
    text, _ = store.tokens.create("root", Scope.ADMIN, expires_in_seconds=None)
    for path in ("/v1/sweeps", "/v1/cluster", "/metrics"):
        assert guarded.get(path, headers=_password(text)).status_code == 401
    assert guarded.post("/v1/sweeps", headers=_password(text)).status_code == 401


def test_its_scripts_run_and_reach_nothing_of_ours(http: TestClient) -> None:
    policy = http.get("/ray/timezone", headers={"Host": "127.0.0.1:8484"}).headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["frame-ancestors"] == rules["form-action"] == "'none'"
    assert rules["script-src"] == rules["connect-src"] == "127.0.0.1:8484/ray/"
    for host in ("[::1]:8484", "evil; script-src *", "a,b"):
        policy = http.get("/ray/timezone", headers={"Host": host}).headers["content-security-policy"]
        assert "connect-src 'self'; script-src 'self';" in policy
    assert "script-src" not in http.get("/v1/cluster").headers["content-security-policy"]
