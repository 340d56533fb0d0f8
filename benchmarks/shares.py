"""Do sweeps that run at once have what their priorities give them? On four nodes simulated on one machine.

    python benchmarks/shares.py [--priorities 1 3] [--gpus-per-trial 1 1] [--nodes 4] [--gpus-per-node 1]
                                [--settling-seconds 30] [--seconds 120] [--seconds-per-epoch 1]

Nodes with a CPU for each GPU (nobody computes on them) run sweeps of trials that sleep for four epochs
(`sleeping.py`). The first is alone for 15 seconds and has all nodes; then the others come. A while after each
of them has measured something, their GPU seconds are counted, as the store has them.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nodes import SimulatedCluster, sleeping_sweep
from sleeping import driver_command

from care_sweep.settings import Settings
from care_sweep.store import Store, open_database

_TOLERANCE = 0.15
_ALONE_SECONDS = 15.0
_LONGEST_START_SECONDS = 120.0


def run(told: argparse.Namespace, home: Path) -> dict[str, Any]:
    """Run the sweeps and count."""
    os.environ["CARE_SWEEP_HOME"] = str(home)
    cluster = SimulatedCluster(home, told.nodes, dict.fromkeys(("num_cpus", "num_gpus"), told.gpus_per_node))
    from care_sweep.run.runner import Runner  # with it Ray, which must find the environment set

    settings = Settings.from_environment()
    store = Store(open_database(settings.database_url))
    runner = Runner(settings, store, driver=driver_command(told.seconds_per_epoch))

    def submit(priority: float, gpus: int) -> str:
        resources = {"cpus_per_trial": gpus, "gpus_per_trial": gpus}
        spec = sleeping_sweep(10_000, priority=priority, resources=resources)
        return store.submit(spec)[0].id

    def steps(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            runner.step()
            time.sleep(0.2)

    def until_measured(sweep_ids: Sequence[str]) -> float:
        began = time.monotonic()
        while not all(store.last_measurement(one) for one in sweep_ids):
            assert time.monotonic() - began < _LONGEST_START_SECONDS, "a sweep has no part in the cluster"
            steps(0.2)
        return time.monotonic() - began

    try:
        first = submit(told.priorities[0], told.gpus_per_trial[0])
        until_measured([first])
        steps(_ALONE_SECONDS)
        alone = sum(one.num_running for one in store.demands())
        ids = [first, *map(submit, told.priorities[1:], told.gpus_per_trial[1:])]
        waited = until_measured(ids)
        steps(told.settling_seconds)
        before = [store.sweep(one).gpu_seconds for one in ids]
        steps(told.seconds)
        used = [store.sweep(one).gpu_seconds - had for one, had in zip(ids, before, strict=True)]
        preempted = sum(
            attempt.reason == "preempted"
            for one in ids
            for trial in store.trials(one).items
            for attempt in store.attempts(one, trial.number)
        )
    finally:
        runner.close()
        cluster.end()
    parts = [one / sum(used) for one in used]
    wanted = [one / sum(told.priorities) for one in told.priorities]
    return {
        "priorities": told.priorities,
        "gpus_per_trial": told.gpus_per_trial,
        "nodes": told.nodes,
        "gpus_per_node": told.gpus_per_node,
        "at_once_alone": alone,
        "seconds_until_all_measured": round(waited, 1),
        "gpu_seconds": [round(one, 1) for one in used],
        "of_what_the_nodes_have": round(sum(used) / (told.nodes * told.gpus_per_node * told.seconds), 3),
        "part": [round(one, 3) for one in parts],
        "part_by_priority": [round(one, 3) for one in wanted],
        "preempted": preempted,
        "is_fair": all(abs(part / want - 1) <= _TOLERANCE for part, want in zip(parts, wanted, strict=True)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--priorities", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--gpus-per-trial", type=int, nargs="+")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--gpus-per-node", type=int, default=1)
    parser.add_argument("--settling-seconds", type=float, default=30.0)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seconds-per-epoch", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    told = parser.parse_args()
    told.gpus_per_trial = told.gpus_per_trial or [1] * len(told.priorities)
    if len(told.gpus_per_trial) != len(told.priorities):
        parser.error("as many --gpus-per-trial as --priorities")
    with TemporaryDirectory(prefix="care-sweep-shares-") as home:
        found = run(told, Path(home))
    answer = json.dumps(found)
    print(answer)
    if told.json:
        told.json.write_text(answer)
    return 0 if found["is_fair"] else 1


if __name__ == "__main__":
    sys.exit(main())
