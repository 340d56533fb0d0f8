"""A cluster that grows and shrinks by itself has room for what the active sweeps want, and no more."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from conducting import sweep_spec
from demanding import demand

from care_sweep.local_ray import RayPorts, ray_command, ray_environment, ray_scratch, ray_token
from care_sweep.run import scaling
from care_sweep.run.scaling import Autoscaler, bundles
from care_sweep.settings import Settings
from care_sweep.store import DemandRecord, Store, open_database


def test_each_trial_that_could_run_is_asked_for() -> None:
    assert bundles([]) == []
    asked = bundles(
        [
            demand("a", cpus_per_trial=2, num_wanted=2, num_running=1),
            demand("b", gpus_per_trial=0.25, num_wanted=1),
            demand("c", gpus_per_trial=None, num_wanted=1),
            demand("d", num_wanted=0),
            demand("e", num_wanted=1, is_quota_spent=True),
        ]
    )
    assert asked == [{"CPU": 2.0}, {"CPU": 2.0}, {"CPU": 1.0, "GPU": 0.25}, {"CPU": 1.0}]


def test_a_token_is_asked_no_more_for_than_its_quota() -> None:
    of_alice = {"token_id": "alice", "max_concurrent_trials": 3, "num_wanted": 2}
    of_bob = {"token_id": "bob", "num_wanted": 2}
    assert len(bundles([demand("a", **of_alice), demand("b", **of_alice)])) == 3
    assert len(bundles([demand("a", **of_bob), demand("b", num_wanted=2)])) == 4


@pytest.mark.parametrize("num_sweeps", [1, 3, 2000])
def test_large_sweeps_leave_room_in_the_question_for_others(num_sweeps: int) -> None:
    found = bundles([demand(str(cpus), cpus_per_trial=cpus) for cpus in range(1, num_sweeps + 1)])
    assert 990 < len(found) <= 1000
    assert len({bundle["CPU"] for bundle in found}) == min(num_sweeps, 1000)


class _AllOrNothing:
    """Version 2 of Ray's autoscaler: what fits, or nothing. It is a look behind with what it tells."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, most_cpus: float) -> None:
        self.asked: Sequence[Any] = []
        self._most_cpus = most_cpus
        self._refused = 0
        monkeypatch.setattr(scaling, "_num_refused", lambda: self._refused)
        monkeypatch.setattr(scaling, "request_resources", self._ask)

    def _ask(self, bundles: Sequence[Any]) -> None:
        self._refused = 0 if self.is_granted else len(self.asked)
        self.asked = bundles

    @property
    def is_granted(self) -> bool:
        """One node is as large as all can be; no trial has more than 4 CPUs there."""
        cpus = [bundle["CPU"] for bundle in self.asked]
        return sum(cpus) <= self._most_cpus and max(cpus, default=0) <= 4

    def most_granted(self, demands: Sequence[DemandRecord], *, num_looks: int) -> dict[float, int]:
        """How many trials of so many CPUs it has provided at some time."""
        asking, most = Autoscaler(), dict.fromkeys((one.cpus_per_trial for one in demands), 0)
        for _ in range(num_looks):
            asking.ask(demands)
            for cpus in most if self.is_granted else ():
                most[cpus] = max(most[cpus], sum(bundle["CPU"] == cpus for bundle in self.asked))
        return most


def test_of_an_autoscaler_that_gives_all_or_nothing_less_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = _AllOrNothing(monkeypatch, most_cpus=24)
    assert cluster.most_granted([demand("a", num_wanted=1000)], num_looks=40) == {1: 24}


def test_what_no_node_can_hold_does_not_keep_others_from_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = _AllOrNothing(monkeypatch, most_cpus=24)
    demands = [demand("never", cpus_per_trial=64, num_wanted=40), demand("a", num_wanted=12)]
    assert cluster.most_granted(demands, num_looks=60) == {64: 0, 1: 12}


def test_once_nothing_is_wanted_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, asking = _AllOrNothing(monkeypatch, most_cpus=24), Autoscaler()
    asking.ask([demand("a", num_wanted=2)])
    assert cluster.asked == [{"CPU": 1.0}] * 2
    asking.ask([])
    assert cluster.asked == []


# --- a real one -------------------------------------------------------------------------------------------

_HEAD, _HEAD_TYPE = "f" * 51 + "00000", "ray.head.default"  # as Ray's provider of simulated nodes has them
_NUM_NODES, _CPUS = 2, 2


def _autoscaler_config(gcs_address: str) -> dict[str, Any]:
    """A head that runs no trials, and nodes that are processes of this machine, idle for 6 s at most."""
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "test",
        "max_workers": _NUM_NODES,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": gcs_address,
            "head_node_id": _HEAD,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": _HEAD_TYPE,
        "available_node_types": {
            _HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "trials": {"resources": {"CPU": _CPUS}, "node_config": {}, "max_workers": _NUM_NODES},
        },
        **{f"{name}_commands": [] for name in commands},
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        "cluster_synced_files": [],
        "upscaling_speed": 1.0,
    }


@contextmanager
def _autoscaled_cluster(home: Path, environment: dict[str, str], *, version: int) -> Iterator[str]:
    """The address of one. Nodes are started by its head, and none outlives it."""
    ports, config = RayPorts.free(dashboard=0), home / "autoscaler.json"
    config.write_text(json.dumps(_autoscaler_config(f"127.0.0.1:{ports.gcs}")))
    simulated = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    if version == 2:
        ids = dict.fromkeys(["RAY_CLOUD_INSTANCE_ID", "RAY_OVERRIDE_NODE_ID_FOR_TESTING"], _HEAD)
        simulated |= {"RAY_enable_autoscaler_v2": "1", **ids}
    with ray_scratch(home) as scratch, (home / "ray.log").open("wb") as log:
        command = [*ray_command(ports, scratch, 0, 0), f"--autoscaling-config={config}"]
        command.append("--object-store-memory=100000000")
        head = subprocess.Popen(command, env=environment | simulated, stdout=log, stderr=log)
        try:
            yield f"127.0.0.1:{ports.gcs}"
        finally:
            below = psutil.Process(head.pid).children(recursive=True)
            head.terminate()
            head.wait(60)
            for process in psutil.wait_procs(below, timeout=10)[1]:
                process.kill()


@contextmanager
def _runner(environment: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        command = [sys.executable, "-m", "care_sweep.run.runner"]
        runner = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            yield
        finally:
            runner.terminate()
            runner.wait(60)


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, f"not within 120 s: {what}"
        time.sleep(0.2)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
def test_nodes_come_for_a_sweep_and_go_after_it(tmp_path: Path, version: int) -> None:
    settings = Settings.from_environment({"CARE_SWEEP_HOME": str(tmp_path)})
    environment = {**os.environ, **ray_environment(ray_token(tmp_path)), "CARE_SWEEP_HOME": str(tmp_path)}
    store = Store(open_database(settings.database_url))

    def cpus() -> float | None:
        """Of the living nodes, as the runner has reported them last."""
        seen = store.cluster()
        alive = [node["resources"] for node in (seen.report["nodes"] if seen else []) if node["is_alive"]]
        return sum(resources.get("cpus", 0.0) for resources in alive) if alive else None

    with (
        _autoscaled_cluster(tmp_path, environment, version=version) as address,
        _runner({**environment, "RAY_ADDRESS": address}, tmp_path / "runner.log"),
    ):
        _until(lambda: cpus() == 0, "the runner sees a cluster without workers")
        sweep_id = store.submit(sweep_spec(num_trials=20))[0].id
        _until(lambda: cpus() == _NUM_NODES * _CPUS, "as many nodes as there can be have come")
        _until(lambda: bool(store.trials(sweep_id).items), "a trial begins there")
        store.control.cancel(sweep_id)
        _until(lambda: cpus() == 0, "the nodes have gone")
    store.engine.dispose()
