"""Is every trial of a sweep accounted for where nodes die? On a cluster of nodes simulated on one machine.

    python benchmarks/nodes.py [--nodes 4] [--deaths 20] [--head-deaths 1] [--trials 120]
                               [--seconds-per-epoch 0.5] [--seed 0] [--storage-uri s3://BUCKET] [--json FILE]

A head without CPUs for trials and so many nodes of one CPU, with token authentication, run one sweep of
trials that sleep (`sleeping.py`): database, runner, driver, conductor, Tune and storage are the service's
own. At random moments a node is killed, drained and killed, or stopped, by turns, and another is added, and
once that is there the next may go.
Between them the head's control service is killed and started again on what it kept (RAY_gcs_storage), while
the API is read. Seeded are the trials and which node dies after how long; which trial that meets is up to the
machine.
"""

import argparse
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sleeping import driver_command

from care_sweep.client import Client
from care_sweep.documents import parse
from care_sweep.local_ray import free_port, ray_environment, ray_scratch, ray_token
from care_sweep.part import Part
from care_sweep.settings import Settings
from care_sweep.spec import SweepSpec
from care_sweep.store import Store, open_database

__all__ = ["EPOCHS", "WAYS", "Account", "SimulatedCluster", "account", "sleeping_sweep"]

EPOCHS = 4
WAYS = ("killed", "drained", "stopped")
"""How a node ends: all its processes at once; so, but two seconds after it was told; or each by SIGTERM."""

_PREEMPTION = 2  # a DrainNodeReason; nodes are drained for their idleness only while they are idle
_NOTICE_SECONDS = 2.0
_HEADLESS_SECONDS = 4.0
_SHORTEST_LIFE_SECONDS, _LONGEST_LIFE_SECONDS = 2.0, 6.0  # between two deaths
_LONGEST_SECONDS = 1800.0


class SimulatedCluster:
    """A head and so many nodes, each with its own raylet; the environment leads to it. One a process.

    `node` is what each has, as Ray's `Cluster.add_node` takes it; GPUs need not be there.
    """

    def __init__(self, home: Path, num_nodes: int, node: Mapping[str, int] | None = None) -> None:
        self._node = {"num_cpus": 1, **(node or {})}
        self._scratch = ray_scratch(home)
        scratch = self._scratch.__enter__()
        (scratch / "ray").mkdir()  # for the address of the cluster that was started last
        os.environ |= {**ray_environment(ray_token(home)), "RAY_TMPDIR": str(scratch)}
        os.environ |= {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(home / "gcs")}
        os.environ |= {"RAY_raylet_start_wait_time_s": "120"}  # on a busy machine
        from ray.cluster_utils import Cluster  # it reads the environment as it is loaded

        head = {"num_cpus": 0, "include_dashboard": False, "dashboard_port": free_port()}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        os.environ["RAY_ADDRESS"] = self._cluster.address
        self._nodes = [self._cluster.add_node(**self._node, wait=False) for _ in range(num_nodes)]
        self._cluster.wait_for_nodes()

    def take(self, index: int, how: str) -> None:
        """End a node, in one of the `WAYS`, and add another in its place."""
        node = self._nodes[index]
        if how == "drained":
            from ray._raylet import GcsClient

            client = GcsClient(address=self._cluster.address)
            is_drained, why_not = client.drain_node(node._node_id, _PREEMPTION, "by the benchmark", 0)
            assert is_drained, why_not
            time.sleep(_NOTICE_SECONDS)
        self._cluster.remove_node(node, allow_graceful=how == "stopped")
        self._nodes[index] = self._cluster.add_node(**self._node, wait=False)

    @property
    def is_whole(self) -> bool:
        """Every node that was added last is there."""
        alive = {node["NodeID"] for node in self._cluster.global_state.node_table() if node["Alive"]}
        return all(node._node_id in alive for node in self._nodes)

    @contextmanager
    def without_head(self) -> Iterator[None]:
        """Its control service is dead for the length of a `with`."""
        self._cluster.head_node.kill_gcs_server()
        try:
            yield
        finally:
            self._cluster.head_node.start_gcs_server()

    def end(self) -> None:
        self._cluster.shutdown()
        self._scratch.__exit__(None, None, None)


@dataclass(frozen=True)
class Account:
    """What became of a sweep's trials.

    Attributes:
        trials: how many ended in which state.
        endings: why attempts ended that did not end their trial.
        missing, doubled: trials and measurements that are not there once.
    """

    state: str
    trials: Mapping[str, int]
    num_attempts: int
    endings: Mapping[str, int]
    missing: int
    doubled: int
    seconds: float = 0.0
    num_deaths: int = 0
    num_head_deaths: int = 0


def sleeping_sweep(num_trials: int, **changes: Any) -> SweepSpec:
    """A sweep of trials of `EPOCHS` epochs, none of which stops early."""
    space = {
        "parameters": {"temperature": {"type": "float", "low": 0.05, "high": 1, "log": True}},
        "fixed": {"epochs": EPOCHS},
    }
    document = {"name": "sleeping", "space": space, "num_trials": num_trials, "early_stopping": "none"}
    return parse(SweepSpec, document | changes)


def account(store: Store, sweep_id: str) -> Account:
    """Count what the store has of a sweep."""
    sweep = store.sweep(sweep_id)
    trials = list(store.trials(sweep_id).items)
    numbers = Counter(trial.number for trial in trials)
    attempts = [one for trial in trials for one in store.attempts(sweep_id, trial.number)]
    wanted = {(number, epoch) for number in range(sweep.spec.num_trials) for epoch in range(1, EPOCHS + 1)}
    found = Counter(
        (trial.number, one.epoch) for trial in trials for one in store.measurements(sweep_id, trial.number)
    )
    return Account(
        str(sweep.state),
        dict(Counter(str(trial.state) for trial in trials)),
        len(attempts),
        dict(Counter(one.reason for one in attempts if one.reason)),
        len(set(range(sweep.spec.num_trials)) - set(numbers)) + len(wanted - set(found)),
        sum(count - 1 for count in (*numbers.values(), *found.values())) + len(set(found) - wanted),
    )


def run(told: argparse.Namespace, home: Path) -> Account:
    """Run the sweep while nodes die."""
    os.environ["CARE_SWEEP_HOME"] = str(home)
    if told.storage_uri:
        os.environ["CARE_SWEEP_STORAGE_URI"] = told.storage_uri
    cluster = SimulatedCluster(home, told.nodes)
    from care_sweep.run.runner import Runner  # with it Ray, which must find the environment set

    settings = Settings.from_environment()
    port = free_port()
    service = Part("service", [sys.executable, "-m", "service", "--port", str(port)], home / "service.log")
    service.start(os.environ)
    store = Store(open_database(settings.database_url))
    runner = Runner(settings, store, driver=driver_command(told.seconds_per_epoch))
    sweep_id = store.submit(sleeping_sweep(told.trials, seed=told.seed))[0].id
    chance = random.Random(told.seed)  # noqa: S311
    num_deaths, num_head_deaths, began = 0, 0, time.monotonic()
    next_death = None
    try:
        while not store.sweep(sweep_id).state.is_terminal:
            now = time.monotonic()
            assert now - began < _LONGEST_SECONDS, "the sweep does not end"
            runner.step()
            if next_death is None and store.last_measurement(sweep_id):
                next_death = now + chance.uniform(_SHORTEST_LIFE_SECONDS, _LONGEST_LIFE_SECONDS)
            is_due = next_death is not None and now >= next_death and num_deaths < told.deaths
            if is_due and cluster.is_whole:
                how = WAYS[num_deaths % len(WAYS)]
                cluster.take(chance.randrange(told.nodes), how)
                num_deaths += 1
                next_death = now + chance.uniform(_SHORTEST_LIFE_SECONDS, _LONGEST_LIFE_SECONDS)
            if num_deaths * (told.head_deaths + 1) > told.deaths * (num_head_deaths + 1):
                num_head_deaths += 1
                with cluster.without_head(), Client(f"http://127.0.0.1:{port}") as client:
                    assert client.sweep(sweep_id)["trial_counts"], "the API is read while there is no head"
                    time.sleep(_HEADLESS_SECONDS)
            time.sleep(0.2)
        more = {
            "seconds": time.monotonic() - began,
            "num_deaths": num_deaths,
            "num_head_deaths": num_head_deaths,
        }
        return Account(**{**asdict(account(store, sweep_id)), **more})
    finally:
        service.stop()
        runner.close()
        cluster.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--deaths", type=int, default=20)
    parser.add_argument("--head-deaths", type=int, default=1)
    parser.add_argument("--trials", type=int, default=120)
    parser.add_argument("--seconds-per-epoch", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storage-uri")
    parser.add_argument("--json", type=Path)
    told = parser.parse_args()
    with TemporaryDirectory(prefix="care-sweep-nodes-") as home:
        found = run(told, Path(home))
    answer = json.dumps(asdict(found))
    print(answer)
    if told.json:
        told.json.write_text(answer)
    is_whole = found.state == "SUCCEEDED" and found.trials == {"COMPLETE": told.trials}
    return 0 if is_whole and not found.missing and not found.doubled else 1


if __name__ == "__main__":
    sys.exit(main())
