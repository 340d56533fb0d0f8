"""A process that trains holds no way to the database and no token of the service, and keeps the memory
that it frees, on a real Ray."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from care_sweep.local_ray import ray_environment
from care_sweep.memory import KEEPING_FREED_MEMORY
from care_sweep.settings import Settings
from care_sweep.supervise import running

pytestmark = [pytest.mark.ray, pytest.mark.slow]

_DRIVER = """
import json, os, sys
import ray
from care_sweep.run.cluster import connect

connect(sys.argv[1])

@ray.remote(num_cpus=1)
def environment():
    return dict(os.environ)

print(json.dumps(ray.get(environment.remote())))
"""


def test_what_a_trial_inherits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a driver starts it, which has both: the secrets are nowhere in what the worker sees."""
    database_url = f"sqlite:///{tmp_path / 'hunter1.db'}"
    secrets = {
        "CARE_SWEEP_DATABASE_URL": database_url,
        "CARE_SWEEP_TOKEN": "cs_hunter2",
        "PGPASSWORD": "hunter3",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-key")
    settings = Settings.from_environment({**os.environ, "CARE_SWEEP_HOME": str(tmp_path / "home")})
    with running(settings, num_cpus=1) as instance:
        assert instance.ray is not None
        assert instance.token_path is not None
        done = subprocess.run(
            [sys.executable, "-c", _DRIVER, instance.ray.address],
            env=os.environ | ray_environment(instance.token_path),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["AWS_ACCESS_KEY_ID"] == "a-key", "checkpoints may go to an object store"
    assert KEEPING_FREED_MEMORY.items() <= found.items()
    assert not {*secrets} & {*found}
    assert "hunter" not in json.dumps(found)
