"""What docker/ gives to Prometheus and Grafana names only what the program exposes."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from fabrication import Fabricator
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from care_sweep.store import Store

DOCKER = Path(__file__).parents[2] / "docker"
DASHBOARDS = sorted((DOCKER / "grafana" / "dashboards").glob("*.json"))


def _yaml(path: str) -> Any:
    return yaml.safe_load((DOCKER / path).read_text())


def _exposed(http: TestClient, store: Store, fabricate: Fabricator) -> dict[str, set[str]]:
    """The names of all samples and of their labels, with a sweep that runs and a cluster that is there."""
    fabricate.claimed()
    gpus = {"gpus": 4.0}
    store.report_cluster("a runner", {"nodes": [], "resources": gpus, "available": gpus})
    http.get("/v1/cluster")
    families = text_string_to_metric_families(http.get("/metrics").text)
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


def test_a_dashboard_shows_what_is_exposed(http: TestClient, store: Store, fabricate: Fabricator) -> None:
    exposed = _exposed(http, store, fabricate)
    (source,) = _yaml("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    shown: set[str] = set()
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        panels = dashboard["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        for panel in panels:
            assert panel["datasource"]["uid"] == source["uid"]
            for target in panel["targets"]:
                names = set(re.findall(r"\bcare_sweep_\w+", target["expr"]))
                assert names and names <= set(exposed), (panel["title"], names - set(exposed))
                labels = {label for name in names for label in exposed[name]}
                used = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
                used += re.findall(r"[{,] *(\w+) *=", target["expr"])
                for grouped in re.findall(r"by \(([\w, ]+)\)", target["expr"]):
                    used += grouped.split(", ")
                assert set(used) <= labels, (panel["title"], set(used) - labels)
                shown |= names
    assert {name.removesuffix("_bucket") for name in shown} >= {
        "care_sweep_sweeps",
        "care_sweep_trials",
        "care_sweep_images_trained_total",
        "care_sweep_gpu_seconds_total",
        "care_sweep_search_seconds_total",
        "care_sweep_lease_age_seconds",
        "care_sweep_store_transaction_seconds",
        "care_sweep_http_requests_total",
        "care_sweep_http_request_seconds",
        "care_sweep_open_event_streams",
    }


def test_prometheus_shows_a_token_to_each_that_asks_for_one(http: TestClient) -> None:
    """Neither file is in the repository: both are secrets that it is given."""
    ours, rays = _yaml("prometheus.yml")["scrape_configs"]
    assert "/metrics" in http.get("/openapi.json").json()["paths"], "the path that it asks for by itself"
    assert ours["authorization"] == {"type": "Bearer", "credentials_file": "/run/secrets/metrics_token"}
    (discovery,) = rays["http_sd_configs"]
    assert discovery["url"].endswith("/api/prometheus/sd")
    assert discovery["authorization"] == {"type": "Bearer", "credentials_file": "/run/secrets/ray_token"}
