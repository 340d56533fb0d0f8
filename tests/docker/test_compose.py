"""docker/compose.yaml without an engine: confined services, one published port, files that are there."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCUMENT = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = DOCUMENT["services"]
MADE = {"./state/s3", "./state/prometheus"}  # by make_secrets.sh
OURS = {name for name, service in SERVICES.items() if "build" in service}
each_service = pytest.mark.parametrize("name", SERVICES)


@pytest.mark.parametrize(
    "file", ["compose.yaml", "compose.gpu.yaml", "compose.dashboards.yaml", "test/compose.yaml"]
)
def test_the_schema_of_compose_accepts_it(file: str) -> None:
    check = [Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    ran = subprocess.run([*check, DOCKER / file], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
    overlaid = yaml.safe_load((DOCKER / file).read_text())["services"]
    assert overlaid.keys() <= SERVICES.keys()


@each_service
def test_a_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    user = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", service["user"]).split(":")[0]
    assert int(user) > 0
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert any(entry.startswith("/tmp") for entry in service["tmpfs"])  # noqa: S108
    assert "privileged" not in service
    assert "network_mode" not in service
    assert not any("docker.sock" in str(volume) for volume in service.get("volumes", []))


@each_service
def test_a_service_tells_its_health_and_comes_back(name: str) -> None:
    service = SERVICES[name]
    if name == "bucket":  # it ends
        assert service["restart"] == "no"
        return
    assert service["restart"] == "unless-stopped"
    if name in OURS:
        assert "\nHEALTHCHECK " in (ROOT / service["build"]["dockerfile"]).read_text()
    else:
        assert service["healthcheck"]["test"]
    for needed, how in service.get("depends_on", {}).items():
        ends = needed == "bucket"
        assert how["condition"] == ("service_completed_successfully" if ends else "service_healthy")


def test_the_api_alone_publishes_a_port_and_on_loopback() -> None:
    assert [name for name in SERVICES if "ports" in SERVICES[name]] == ["api"]
    assert SERVICES["api"]["ports"] == ["${CARE_SWEEP_BIND:-127.0.0.1}:${CARE_SWEEP_PORT:-8484}:8484"]
    inner = {name for name, network in DOCUMENT["networks"].items() if network.get("internal")}
    assert {name for name in SERVICES if set(SERVICES[name]["networks"]) - inner} == {"api"}


def test_who_is_in_a_network_with_whom() -> None:
    def members(network: str) -> set[str]:
        return {name for name in SERVICES if network in SERVICES[name]["networks"]}

    assert members("database") == {"api", "runner", "postgres"}
    assert members("ray") == {"runner", "ray-head", "ray-worker", "s3", "prometheus"}


def test_secrets_are_where_they_are_needed() -> None:
    holders = {
        "POSTGRES_PASSWORD": {"api", "runner", "postgres"},
        "CARE_SWEEP_DATABASE_URL": {"api", "runner"},
        "S3_SECRET_KEY": {"api", "runner", "ray-worker", "s3", "bucket"},
        "GRAFANA_PASSWORD": {"grafana"},
    }
    for secret, expected in holders.items():
        assert {name for name in SERVICES if secret in str(SERVICES[name])} == expected
    of_ray = {"runner", "ray-head", "ray-worker"}

    def holding(secret: str) -> set[str]:
        return {name for name in SERVICES if secret in SERVICES[name].get("secrets", [])}

    assert holding("ray_token") == of_ray | {"prometheus"}, "which asks the head where to scrape"
    assert holding("metrics_token") == {"prometheus"}
    for name in of_ray:
        assert SERVICES[name]["environment"]["RAY_AUTH_MODE"] == "token"
        assert SERVICES[name]["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"  # noqa: S105


def test_the_head_keeps_what_it_knows_on_a_volume() -> None:
    head = SERVICES["ray-head"]
    assert head["environment"]["RAY_gcs_storage"] == "rocksdb"
    (volume,) = head["volumes"]
    assert head["environment"]["RAY_gcs_storage_path"].startswith(volume.partition(":")[2])
    assert volume.partition(":")[0] in DOCUMENT["volumes"]


def test_volumes_are_declared_and_files_are_there() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", volume).split(":")[0]
            if not source.startswith("."):
                assert source in DOCUMENT["volumes"], name
            elif source not in MADE:
                assert (DOCKER / source).exists(), source
        if name in OURS:
            assert (ROOT / service["build"]["dockerfile"]).is_file()
        if service.get("command", [""])[0].startswith("/opt/care-sweep/"):
            assert (DOCKER / Path(service["command"][0]).name).is_file()


def test_what_the_environment_must_hold_is_made_and_listed(tmp_path: Path) -> None:
    """Once: a second run changes nothing. Only the containers' user reads the token."""
    text = (DOCKER / "compose.yaml").read_text()
    required, optional = set(re.findall(r"\$\{(\w+):\?", text)), set(re.findall(r"\$\{(\w+):-", text))
    example = (DOCKER / ".env.example").read_text()
    listed = set(re.findall(r"^(\w+)=", example, re.MULTILINE))
    unneeded = {"CARE_SWEEP_SECRETS", "CARE_SWEEP_API_IMAGE", "CARE_SWEEP_WORKER_IMAGE"}  # for other images
    assert required <= listed <= required | optional
    assert optional - unneeded <= set(re.findall(r"^#?(\w+)=", example, re.MULTILINE))
    made = []
    for _ in range(2):
        subprocess.run([DOCKER / "make_secrets.sh", tmp_path], check=True)
        made.append(((tmp_path / ".env").read_text(), (tmp_path / "secrets" / "ray_token").read_text()))
    assert made[0] == made[1]
    values = dict(line.split("=") for line in made[0][0].splitlines())
    assert values.keys() == listed
    assert all(values[name] for name in required)
    assert len(made[0][1]) == 64
    token = (tmp_path / "secrets" / "ray_token").stat()
    assert stat.S_IMODE(token.st_mode) == 0o600
    assert str(token.st_uid) == values["CARE_SWEEP_UID"] != "0"
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600
    assert os.access(tmp_path / "state" / "s3", os.W_OK)


def test_what_is_secret_is_not_committed() -> None:
    ignored = (ROOT / ".gitignore").read_text().split()
    assert {"docker/.env", "docker/secrets/", "docker/state/"} <= set(ignored)
