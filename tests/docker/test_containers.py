"""Images and docker/compose.yaml on a real engine: a sweep outlives a worker's container and Ray's head."""

import contextlib
import hashlib
import json
import secrets
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from engine import ROOT, Engine, running_engine

from care_sweep.client import Client

pytestmark = [pytest.mark.containers, pytest.mark.full]

BASE = "python:3.11-slim-bookworm"
API, WORKER = "care-sweep-api:test", "care-sweep-worker:test"
IMAGES = {
    API: "docker/api.Dockerfile",
    WORKER: "docker/worker.Dockerfile",
    "care-sweep-test-postgres": "docker/test/postgres.Dockerfile",
    "care-sweep-test-s3": "docker/test/s3.Dockerfile",
}
SERVICES = ("api", "runner", "ray-head", "ray-worker")
SWEEP = {
    "name": "containers",
    "space": {
        "name": "containers",
        "parameters": {"temperature": {"type": "float", "low": 0.1, "high": 0.5, "default": 0.2}},
        "fixed": {
            "dataset": "cifar10-mini",
            "encoder": "resnet_tiny",
            "epochs": 3,
            "num_splits": 8,
            "probe_epochs": 10,
        },
    },
    "num_trials": 4,
    "early_stopping": "none",
    "resources": {"cpus_per_trial": 1, "gpus_per_trial": 0},
}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with running_engine() as engine:
        yield engine


@pytest.fixture(scope="module")
def images(engine: Engine) -> Engine:
    """The engine, once it has all images."""
    for tag, file in IMAGES.items():
        began = time.monotonic()
        engine.build(file, tag)
        print(f"{tag}: {_size(engine, tag) / 1e6:.0f} MB, built in {time.monotonic() - began:.0f} s")
    print(f"{BASE}: {_size(engine, BASE) / 1e6:.0f} MB")
    return engine


@dataclass(frozen=True)
class Stack:
    """docker/compose.yaml as a project of this test."""

    engine: Engine
    project: str
    settings: dict[str, str]
    url: str

    def compose(self, *arguments: str) -> str:
        files = [ROOT / "docker" / "compose.yaml", ROOT / "docker" / "test" / "compose.yaml"]
        named = [part for file in files for part in ("--file", str(file))]
        environment = ["--env-file", f"{self.settings['CARE_SWEEP_S3']}/../../.env"]
        return self.engine.compose(
            "--project-name", self.project, *named, *environment, *arguments, settings=self.settings
        )

    def python(self, service: str, code: str) -> str:
        """What a program prints in a container of the service."""
        return self.compose("exec", "--no-TTY", service, "python", "-c", code).strip()

    def container(self, service: str, number: int = 1) -> str:
        return f"{self.project}-{service}-{number}"


@pytest.fixture(scope="module")
def stack(
    images: Engine, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Stack]:
    """The stack, up and well; taken down with its volumes whatever happens."""
    home = tmp_path_factory.mktemp("compose")
    subprocess.run([ROOT / "docker" / "make_secrets.sh", home], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    settings = {
        "CARE_SWEEP_API_IMAGE": API,
        "CARE_SWEEP_WORKER_IMAGE": WORKER,
        "CARE_SWEEP_SECRETS": str(home / "secrets"),
        "CARE_SWEEP_S3": str(home / "state" / "s3"),
        "CARE_SWEEP_PORT": port,
        "CARE_SWEEP_WORKER_CPUS": "1",
    }
    project = f"care-sweep-test-{secrets.token_hex(3)}"
    stack = Stack(images, project, settings, f"http://127.0.0.1:{port}")
    is_up = False
    try:
        began = time.monotonic()
        _bring_up(stack)
        print(f"up and healthy after {time.monotonic() - began:.0f} s")
        is_up = True
        yield stack
    finally:
        if request.session.testsfailed or not is_up:
            print(stack.compose("logs", "--tail", "40"))
        stack.compose("down", "--volumes", "--timeout", "5")


@pytest.mark.parametrize("overlay", ["compose.gpu.yaml", "compose.dashboards.yaml", "test/compose.yaml"])
def test_compose_reads_its_files(engine: Engine, overlay: str, tmp_path: Path) -> None:
    subprocess.run([ROOT / "docker" / "make_secrets.sh", tmp_path], check=True)
    files = ["--file", f"{ROOT}/docker/compose.yaml", "--file", f"{ROOT}/docker/{overlay}"]
    engine.compose(*files, "--env-file", f"{tmp_path}/.env", "config", "--quiet", settings={})


def test_the_service_is_small_and_holds_neither_torch_nor_ray(images: Engine) -> None:
    over_base = _size(images, API) - _size(images, BASE)
    print(f"{API}: {over_base / 1e6:.0f} MB over {BASE}")
    assert over_base <= 200e6
    script = "import importlib.util as u; print([n for n in ('torch', 'ray', 'pip') if u.find_spec(n)])"
    assert images.docker("run", "--rm", API, "python", "-c", script).strip() == "[]"


@pytest.mark.parametrize("image", [API, WORKER])
def test_an_image_runs_as_nobody_special_and_tells_its_health(images: Engine, image: str) -> None:
    (inspected,) = json.loads(images.docker("image", "inspect", image))
    assert inspected["Config"]["User"] == "10001"
    assert inspected["Config"]["Healthcheck"]["Test"]


def test_a_parquet_export_works_without_what_was_left_out(images: Engine) -> None:
    script = """
import io
import numpy
from service.tabular import Table, write_parquet
file = io.BytesIO()
write_parquet(Table({"number": int, "name": str}, [(1, "one"), (2, None)]), file)
from pyarrow.parquet import read_table
print(read_table(file).to_pylist(), numpy.linalg.det(numpy.eye(2)))
"""
    printed = images.docker("run", "--rm", "--read-only", API, "python", "-c", script)
    assert printed.strip() == "[{'number': 1, 'name': 'one'}, {'number': 2, 'name': None}] 1.0"


def test_trials_reach_no_database_and_nobody_reaches_ray_without_its_token(stack: Stack) -> None:
    assert "POSTGRES" not in stack.python("ray-worker", "import os; print(os.environ)").upper()
    connect = "import socket; socket.create_connection(({!r}, {}), 3)"
    stack.python("runner", connect.format("postgres", 5432))
    stack.python("ray-worker", connect.format("s3", 9000))
    for service, host, port in (("ray-worker", "postgres", 5432), ("api", "ray-head", 6379)):
        with pytest.raises(AssertionError, match=r"Name or service not known|name resolution"):
            stack.python(service, connect.format(host, port))
    ask = "import urllib.request as r; print(r.urlopen('http://ray-head:8265/api/version').status)"
    with pytest.raises(AssertionError, match="401"):
        stack.python("ray-worker", ask)


def test_the_root_cannot_be_written_and_one_port_is_published(stack: Stack) -> None:
    for service in SERVICES:
        with pytest.raises(AssertionError, match="Read-only file system"):
            stack.python(service, "open('/opt/care-sweep/new', 'w')")
        assert stack.python(service, "import os; print(os.getuid())") != "0"
    listed = stack.engine.docker(
        "ps", "--format", "{{.Names}} {{.Ports}}", "--filter", f"name={stack.project}"
    )
    published = [line for line in listed.splitlines() if "->" in line]
    assert [line.split()[0] for line in published] == [stack.container("api")]
    assert all(part.startswith("127.0.0.1:") for part in published[0].split()[1:])


def test_a_sweep_outlives_a_worker_and_the_head(stack: Stack, tmp_path: Path) -> None:
    created = stack.compose(
        "exec", "--no-TTY", "api", "care-sweep", "token", "create", "a-test", "--scope", "submit", "--json"
    )
    began = time.monotonic()
    with Client(stack.url, token=json.loads(created)["token"]) as client:
        sweep_id = client.submit(SWEEP)["id"]
        _until(lambda: sum(trial["state"] == "RUNNING" for trial in client.trials(sweep_id)) == 2)
        _until(lambda: any(trial["last_epoch"] for trial in client.trials(sweep_id)))
        stack.engine.docker("kill", stack.container("ray-worker", 1))
        stack.engine.docker("restart", "--time", "5", stack.container("ray-head"))
        print(f"a worker killed and the head restarted {time.monotonic() - began:.0f} s into the sweep")
        ended = client.wait(sweep_id, timeout=900)
        assert (ended["state"], ended["reason"]) == ("SUCCEEDED", None)
        assert ended["trial_counts"] == {"COMPLETE": 4}
        attempts = [len(client.trial(sweep_id, number)["attempts"]) for number in range(4)]
        print(f"it succeeded {time.monotonic() - began:.0f} s after it was submitted; attempts {attempts}")
        assert max(attempts) > 1, "a trial was cut off by the worker's end"
        best = client.best(sweep_id)["configurations"][0]["number"]
        stored = client.trial(sweep_id, best)["checkpoint"]
        checkpoint = client.download(sweep_id, tmp_path / "best.tar")  # it compares Repr-Digest
    assert stored is not None
    assert hashlib.sha256(checkpoint.read_bytes()).hexdigest() == stored["sha256"]
    with tarfile.open(checkpoint) as archive:
        contents = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    manifest = json.loads(contents.pop("manifest.json"))
    assert {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()} == {
        name: file["sha256"] for name, file in manifest["files"].items()
    }


def _bring_up(stack: Stack) -> None:
    """Ray ends a node that has not joined within 30 s; it is started again, yet Compose waits no longer."""
    up = ("up", "--detach", "--wait", "--no-build", "--pull", "never", *SERVICES)
    for _ in range(2):
        with contextlib.suppress(AssertionError):
            stack.compose(*up)
            return
    stack.compose(*up)


def _size(engine: Engine, image: str) -> int:
    return int(engine.docker("image", "inspect", "--format", "{{.Size}}", image))


def _until(condition: Callable[[], bool], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.5)
