"""Ray's own dashboard, seen through the service: what its pages need is there, and no more."""

import re
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from care_sweep.client import Client
from care_sweep.supervise import Instance

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def shown(instance: Instance, client: Client) -> Iterator[httpx2.Client]:
    """A client of `/ray/`, once the runner has told where the dashboard is."""
    with httpx2.Client(base_url=f"{instance.url}/ray/", timeout=60) as http:
        deadline = time.monotonic() + 60
        while not client.cluster()["dashboard_url"]:
            assert time.monotonic() < deadline, "no runner tells of the cluster"
            time.sleep(0.2)
        yield http


def _json(answer: httpx2.Response) -> Any:
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json"), answer.text
    return answer.json()


def test_its_page_and_all_that_it_loads_are_shown(shown: httpx2.Client) -> None:
    page = shown.get("")
    assert page.headers["content-type"].startswith("text/html")
    loaded = re.findall(r'(?:src|href)="\./([^"]+)"', page.text)
    assert len(loaded) == 3, "a script, a sheet and an icon, each below the page's own path"
    for path in loaded:
        assert shown.get(path).status_code == 200, path
    sheet = next(path for path in loaded if path.endswith(".css"))
    for name in re.findall(r"url\(\.\./media/([^)]+)\)", shown.get(f"static/{sheet[7:]}").text)[:2]:
        assert shown.get(f"static/media/{name}").status_code == 200, name


def test_what_its_pages_read_is_shown(shown: httpx2.Client, client: Client) -> None:
    node = client.cluster()["nodes"][0]["id"]
    (summary,) = _json(shown.get("nodes?view=summary"))["data"]["summary"]
    assert summary["raylet"]["nodeId"] == node
    assert _json(shown.get(f"nodes/{node}"))["result"]
    assert _json(shown.get("logical/actors"))["result"]
    assert _json(shown.get("api/cluster_status?format=1"))["result"]
    assert _json(shown.get("events"))["result"]
    assert any("care_sweep.run.runner" in job["entrypoint"] for job in _json(shown.get("api/jobs/")))
    for table in ("actors", "nodes", "placement_groups", "tasks", "workers"):
        assert _json(shown.get(f"api/v0/{table}?detail=1&limit=10"))["result"], table
    for path in ("timezone", "api/authentication_mode", "api/v0/cluster_metadata"):
        _json(shown.get(path))


def test_what_runs_or_changes_anything_is_hidden(shown: httpx2.Client, client: Client) -> None:
    node = client.cluster()["nodes"][0]["id"]
    for path in (
        "worker/traceback?pid=1&ip=127.0.0.1",
        "worker/cpu_profile?pid=1&ip=127.0.0.1",
        "memory_profile?pid=1&ip=127.0.0.1",
        "api/packages/gcs/a.zip",
        "api/v0/delay/0",
        f"api/v0/logs?node_id={node}",
        f"api/v0/logs/file?node_id={node}&filename=raylet.out",
    ):
        assert shown.get(path).status_code == 404, path
    job = {"entrypoint": "true"}
    for method in ("POST", "PUT", "DELETE"):
        assert shown.request(method, "api/jobs/", json=job).status_code == 405
