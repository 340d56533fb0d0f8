"""What does a long history cost its driver? The time of each step of a trial, and the memory of a replay.

    python benchmarks/search.py [--directory search] [--trials 1000 10000] [--parameters 3 10] [--seed 0]

For each number of stored trials and of searched parameters a fresh process opens a SQLite database with that
history (COMPLETE trials at random points, ten epochs each), replays it with the driver's own conductor, and
runs some more trials without Ray and without training: their metrics are drawn. To begin a trial is an ask
and a write of the store, to hear of an epoch is a write and, after the last one, a tell. Beside each time
stands that of the CPU, for a machine that does other things too. Prints JSON; memory is read from /proc.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import quantiles
from tempfile import TemporaryDirectory
from typing import Any

_Times = list[tuple[float, float]]

_NUM_EPOCHS = 10
_SPACES: dict[int, dict[str, Any]] = {
    3: {
        "equivariance_weight": {"type": "float", "low": 0.03, "high": 3.0, "log": True},
        "temperature": {"type": "float", "low": 0.1, "high": 0.5, "log": True},
        "augmentation_strength": {"type": "float", "low": 0.6, "high": 1.4},
    }
}
_SPACES[10] = {
    **_SPACES[3],
    "least_crop_scale": {"type": "float", "low": 0.05, "high": 0.5},
    "learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
    "weight_decay": {"type": "float", "low": 1e-7, "high": 1e-3, "log": True},
    "warmup_epochs": {"type": "int", "low": 0, "high": 5},
    "encoder": {"type": "categorical", "choices": ["resnet_tiny", "resnet18"]},
    "optimizer": {"type": "categorical", "choices": ["adam", "sgd"]},
    "schedule": {"type": "categorical", "choices": ["constant", "cosine"]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--directory", type=Path, help="for the databases; by default a temporary one")
    parser.add_argument("--trials", type=int, nargs="+", default=[1_000, 10_000], help="stored before")
    parser.add_argument("--parameters", type=int, nargs="+", choices=_SPACES, default=list(_SPACES))
    parser.add_argument("--steps", type=int, default=100, help="trials that are run and timed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drive", nargs=2, metavar=("DATABASE", "SWEEP"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive:
        print(json.dumps(drive(*arguments.drive, arguments.steps, arguments.seed)))
        return
    if arguments.directory:
        arguments.directory.mkdir(parents=True, exist_ok=True)
    cases = []
    for num_trials in arguments.trials:
        for num_parameters in arguments.parameters:
            with TemporaryDirectory(prefix="care-sweep-search-", dir=arguments.directory) as folder:
                found = measure(Path(folder), num_trials, num_parameters, arguments.steps, arguments.seed)
            cases.append({"stored_trials": num_trials, "parameters": num_parameters, **found})
    print(json.dumps({"seed": arguments.seed, "steps": arguments.steps, "cases": cases}, indent=2))


def measure(folder: Path, num_trials: int, num_parameters: int, num_steps: int, seed: int) -> dict[str, Any]:
    """Make the history, and have a fresh process go on with it."""
    from filled import fill

    from care_sweep.search.catalog import resolve_sweep
    from care_sweep.store import Store, open_database

    space = {"parameters": _SPACES[num_parameters], "fixed": {"epochs": _NUM_EPOCHS}}
    document = {
        "name": "long",
        "space": space,
        "num_trials": num_trials + num_steps,
        "early_stopping": "none",
    }
    url = f"sqlite:///{folder.absolute() / 'store.db'}"
    store = Store(open_database(url))
    lease = fill(store, resolve_sweep(document), num_trials, Random(seed))  # noqa: S311
    store.engine.dispose()
    options = ["--steps", str(num_steps), "--seed", str(seed), "--drive", url, lease.sweep_id]
    done = subprocess.run([sys.executable, __file__, *options], check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def drive(url: str, sweep_id: str, num_steps: int, seed: int) -> dict[str, Any]:
    """What a driver does, without Ray: replay, then one trial after the other."""
    from care_sweep.run.conductor import Conductor
    from care_sweep.search.study import Study
    from care_sweep.spec import Measurement
    from care_sweep.storage import open_storage
    from care_sweep.store import Lease, Store, open_database

    taken: dict[str, _Times] = defaultdict(list)
    chance = Random(seed)  # noqa: S311
    store = Store(open_database(url))
    lease = store.claim(store.sweep(sweep_id), "benchmark")
    assert lease is not None
    megabytes = {"before": _megabytes("VmRSS")}
    began, began_cpu = time.perf_counter(), time.thread_time()
    conductor = Conductor(store, lease, open_storage(str(Path(url.partition(":///")[2]).parent / "storage")))
    replay = {"seconds": time.perf_counter() - began, "cpu_seconds": time.thread_time() - began_cpu}
    megabytes |= {"after": _megabytes("VmRSS"), "peak": _megabytes("VmHWM")}
    for what, owner, method in (
        ("ask", Study, "ask"),
        ("tell", Study, "complete"),
        ("store a start", Lease, "start_attempt"),
        ("store an epoch", Lease, "record"),
    ):
        setattr(owner, method, _timed(getattr(owner, method), taken[what]))
    begin, hear = (
        _timed(conductor.next, taken["begin a trial"]),
        _timed(conductor.measured, taken["hear of an epoch"]),
    )
    for _ in range(num_steps):
        one = begin()
        for epoch in range(1, _NUM_EPOCHS + 1):
            metrics = {"validation_knn_accuracy": chance.random(), "num_validation_images": 400.0}
            hear(one.number, one.attempt, Measurement(epoch=epoch, metrics=metrics, seconds=1.0))
    return {
        "replay": {name: round(seconds, 2) for name, seconds in replay.items()},
        "megabytes": megabytes,
        "milliseconds": {what: _milliseconds(times) for what, times in taken.items()},
    }


def _timed(method: Callable[..., Any], taken: _Times) -> Callable[..., Any]:
    """The method, which notes how long each call took: seconds, and seconds of CPU."""

    def call(*arguments: Any, **options: Any) -> Any:
        began, began_cpu = time.perf_counter(), time.thread_time()
        try:
            return method(*arguments, **options)
        finally:
            taken.append((time.perf_counter() - began, time.thread_time() - began_cpu))

    return call


def _megabytes(name: str) -> float:
    """A line of this process's status, such as VmHWM, the most memory it has held so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6, 1)


def _milliseconds(taken: _Times) -> dict[str, float]:
    found = {}
    for name, times in zip(("", "cpu_"), zip(*taken, strict=True), strict=True):
        cuts = quantiles(times, n=20, method="inclusive")
        found |= {f"{name}p50": round(1000 * cuts[9], 2), f"{name}p95": round(1000 * cuts[18], 2)}
    return found


if __name__ == "__main__":
    main()
