"""What does the whole path, from HTTP to the stored result, add to training itself?

    python benchmarks/overhead.py [--trials 5 55] [--rounds 1]

Each round runs sweeps of the given numbers of trials, one trial at a time, over HTTP on an instance of its
own, and then calls `learn.train` on the same configurations in a loop, in one process, with the same number
of threads. A line through each pair of times gives fixed seconds a sweep (intercept) and seconds a trial
(slope); the difference between the two lines is the overhead. Prints JSON. The start of the instance is not
counted, that of the worker processes is.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from few_images import cut_few_images

from care_sweep.client import Client
from care_sweep.settings import Settings
from care_sweep.spec import TrialConfig
from care_sweep.supervise import running

_SPACE = {
    "parameters": {
        "equivariance_weight": {"type": "float", "low": 0.01, "high": 10, "log": True},
        "temperature": {"type": "float", "low": 0.05, "high": 1, "log": True},
    },
    "fixed": {"encoder": "resnet_tiny", "epochs": 2, "batch_size": 32, "num_splits": 4, "probe_epochs": 5},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, nargs=2, default=[5, 55])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--bare", nargs=2, metavar=("CONFIGS", "OUTPUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        train_in_a_loop(*map(Path, arguments.bare))
        return
    rounds = [measure(arguments.trials) for _ in range(arguments.rounds)]
    overheads = {key: median(one["overhead"][key] for one in rounds) for key in rounds[0]["overhead"]}
    machine = {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    report = {"trials": arguments.trials, "machine": machine, "median_overhead": overheads, "rounds": rounds}
    print(json.dumps(report, indent=2))


def measure(numbers: list[int]) -> dict[str, Any]:
    """One round: sweep and loop at both numbers of trials, interleaved."""
    swept, bare = {}, {}
    with TemporaryDirectory(prefix="care-sweep-overhead-") as folder:
        settings = Settings.from_environment({"CARE_SWEEP_HOME": folder})
        dataset = cut_few_images(settings.data_roots[0] / "few")
        with running(settings, num_cpus=1) as instance, Client(instance.url) as client:
            for number in numbers:
                swept[number], configs = sweep(client, dataset, number)
                bare[number] = time_loop(configs, Path(folder))
    lines = {name: line(times) for name, times in (("sweep", swept), ("loop", bare))}
    overhead = {key: lines["sweep"][key] - lines["loop"][key] for key in lines["sweep"]}
    return {"sweep_seconds": swept, "loop_seconds": bare, "lines": lines, "overhead": overhead}


def sweep(client: Client, dataset: str, num_trials: int) -> tuple[float, list[dict[str, Any]]]:
    """Seconds from the POST to the stored end, and the configurations that ran."""
    space = {**_SPACE, "fixed": {**_SPACE["fixed"], "dataset": dataset}}
    document = {"name": "overhead", "space": space, "num_trials": num_trials, "early_stopping": "none"}
    started = time.perf_counter()
    sweep_id = client.submit({**document, "max_concurrent_trials": 1})["id"]
    for _ in client.events(sweep_id):
        pass
    seconds = time.perf_counter() - started
    trials = list(client.trials(sweep_id))
    assert [trial["state"] for trial in trials] == ["COMPLETE"] * num_trials
    return seconds, [{**space["fixed"], **trial["parameters"]} for trial in trials]


def time_loop(configs: list[dict[str, Any]], folder: Path) -> float:
    """Seconds of the same trainings in one fresh process; importing torch is part of neither line's slope."""
    order, answer = folder / "configs.json", folder / "seconds.json"
    order.write_text(json.dumps(configs))
    command = [sys.executable, __file__, "--bare", str(order), str(answer)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return float(json.loads(answer.read_text()))


def train_in_a_loop(configs: Path, answer: Path) -> None:
    """The loop a researcher would write, timed with its imports; runs in a process of its own."""
    started = time.perf_counter()
    from care_sweep.learn.data import load_dataset
    from care_sweep.learn.train import train

    todo = [TrialConfig.model_validate(document) for document in json.loads(configs.read_text())]
    with TemporaryDirectory() as folder:
        data = load_dataset(todo[0].dataset, download_directory=Path(folder))
        for number, config in enumerate(todo):
            train(config, data, lambda measurement: None, directory=Path(folder) / str(number))
    answer.write_text(json.dumps(time.perf_counter() - started))


def line(times: dict[int, float]) -> dict[str, float]:
    (n1, t1), (n2, t2) = times.items()
    slope = (t2 - t1) / (n2 - n1)
    return {"seconds_a_sweep": t1 - n1 * slope, "seconds_a_trial": slope}


if __name__ == "__main__":
    main()
