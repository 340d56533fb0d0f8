"""What does a sweep, from HTTP to its stored end, add to training, and how many trials an hour is it?

    python benchmarks/sweep.py [--trials 1 4] [--seconds-per-trial 30] [--rounds 1] [--json FILE]

Trials have as many epochs as a short timing says that they need to take so long. Each round runs sweeps of
the given numbers of trials, one trial at a time, over HTTP on an instance of its own, and after each trains
the same configurations in a loop, in one fresh process (`bare_loop.py`), with one thread like the sweep's. A
line through each pair of times gives fixed seconds (intercept) and seconds of each trial (slope). The start
of the instance is not counted, and 20 s are left to its parts to load in, last the driver that waits for a
sweep; the starts of the worker and of the loop's process are counted, imports included. Each side also says
what its epochs took of that; the rest is machinery, and how much more of it a sweep has than the loop is seen
to tenths of a second, while a machine's speed changes by several per cent from minute to minute. What a
search costs after 1,000 and 10,000 trials is `search.py`'s.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from few_images import cut_few_images
from side_by_side import machine, quartiles, table

from care_sweep.client import Client
from care_sweep.settings import Settings
from care_sweep.supervise import running

_SPACE: dict[str, Any] = {
    "parameters": {
        "equivariance_weight": {"type": "float", "low": 0.01, "high": 10, "log": True},
        "temperature": {"type": "float", "low": 0.05, "high": 1, "log": True},
    },
    "fixed": {"encoder": "resnet_tiny", "batch_size": 32, "num_splits": 4, "probe_epochs": 5},
}
_TIMED_EPOCHS = 6
_SETTLING_SECONDS = 20.0  # of an instance: Ray's dashboard still loads when it answers, then a driver does
_LOOP = Path(__file__).with_name("bare_loop.py")


def main() -> None:
    arguments = _arguments()
    with TemporaryDirectory(prefix="care-sweep-benchmark-") as folder:
        settings = Settings.from_environment({"CARE_SWEEP_HOME": folder})
        dataset = cut_few_images(settings.data_roots[0] / "few")
        epochs = epochs_for(arguments.seconds_per_trial, dataset, Path(folder))
        rounds = [measure(settings, dataset, epochs, arguments.trials) for _ in range(arguments.rounds)]
    from care_sweep.learn.train import default_device

    report = {"machine": machine(default_device()), "epochs": epochs, **summary(rounds), "rounds": rounds}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    print(table([_row(name, found) for name, found in report["trials"].items()]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, nargs=2, default=[1, 4])
    parser.add_argument("--seconds-per-trial", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where the figures are written")
    return parser.parse_args()


def measure(
    settings: Settings, dataset: str, epochs: int, numbers: Sequence[int]
) -> dict[str, dict[int, float]]:
    """One round: seconds of sweep and loop at both numbers of trials, in turns, and those of their epochs."""
    swept, looped, swept_epochs, looped_epochs = {}, {}, {}, {}
    with running(settings, num_cpus=1) as instance, Client(instance.url) as client:
        time.sleep(_SETTLING_SECONDS)
        for number in numbers:
            swept[number], swept_epochs[number], configs = sweep(client, dataset, epochs, number)
            looped[number], taken = time_loop(configs, settings.home)
            looped_epochs[number] = sum(taken)
    return {
        "sweep": swept,
        "loop": looped,
        "epochs of the sweep": swept_epochs,
        "epochs of the loop": looped_epochs,
    }


def sweep(
    client: Client, dataset: str, epochs: int, num_trials: int
) -> tuple[float, float, list[dict[str, Any]]]:
    """Seconds from the POST to the stored end, those of all epochs, and the configurations that ran."""
    space = {**_SPACE, "fixed": {**_SPACE["fixed"], "dataset": dataset, "epochs": epochs}}
    document = {"name": "benchmark", "space": space, "num_trials": num_trials, "early_stopping": "none"}
    started = time.perf_counter()
    sweep_id = client.submit({**document, "max_concurrent_trials": 1})["id"]
    for _ in client.events(sweep_id):
        pass
    seconds = time.perf_counter() - started
    trials = list(client.trials(sweep_id))
    assert [trial["state"] for trial in trials] == ["COMPLETE"] * num_trials
    measured = [one for number in range(num_trials) for one in client.measurements(sweep_id, number)]
    configs = [{**space["fixed"], **trial["parameters"]} for trial in trials]
    return seconds, sum(one["seconds"] for one in measured), configs


def epochs_for(seconds: float, dataset: str, folder: Path) -> int:
    """How many epochs a trial takes so many seconds for, by one trial of a few; two or more."""
    config = {**_SPACE["fixed"], "dataset": dataset, "epochs": _TIMED_EPOCHS}
    _, taken = time_loop([config], folder)
    *steady, last = taken[1:]  # the first one warms up
    return max(2, 1 + math.ceil((seconds - last) / quartiles(steady)[1]))


def time_loop(configs: list[dict[str, Any]], folder: Path) -> tuple[float, list[float]]:
    """Seconds of a process that trains the same, from its start to its end, and those of each epoch."""
    order, answer = folder / "configs.json", folder / "seconds.json"
    order.write_text(json.dumps(configs))
    command = [sys.executable, str(_LOOP), str(order), str(answer)]
    started = time.perf_counter()
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    seconds = time.perf_counter() - started
    return seconds, json.loads(answer.read_text())


def summary(rounds: Sequence[Mapping[str, Mapping[int, float]]]) -> dict[str, Any]:
    """Quartiles over the rounds, for each number of trials and for each further trial."""
    numbers = list(rounds[0]["sweep"])
    kinds = {
        str(number): [(one["sweep"][number], one["loop"][number], number) for one in rounds]
        for number in numbers
    }
    lines = [{name: line(one[name]) for name in ("sweep", "loop")} for one in rounds]
    kinds["each further"] = [
        (one["sweep"]["seconds_a_trial"], one["loop"]["seconds_a_trial"], 1) for one in lines
    ]
    found = {
        name: {
            "sweep_seconds": quartiles([sweep for sweep, _, _ in pairs]),
            "loop_seconds": quartiles([loop for _, loop, _ in pairs]),
            "trials_an_hour": quartiles([3600 * number / sweep for sweep, _, number in pairs]),
            "over_percent": quartiles([100 * (sweep / loop - 1) for sweep, loop, _ in pairs]),
        }
        for name, pairs in kinds.items()
    }
    for number in numbers:
        found[str(number)]["machinery_percent"] = quartiles([_machinery(one, number) for one in rounds])
    fixed = [one["sweep"]["fixed_seconds"] - one["loop"]["fixed_seconds"] for one in lines]
    return {"trials": found, "fixed_seconds_over": quartiles(fixed)}


def _machinery(one: Mapping[str, Mapping[int, float]], number: int) -> float:
    """What a sweep spends outside its epochs more than the loop, in percent of the loop."""
    outside = [one[side][number] - one[f"epochs of the {side}"][number] for side in ("sweep", "loop")]
    return 100 * (outside[0] - outside[1]) / one["loop"][number]


def line(times: Mapping[int, float]) -> dict[str, float]:
    """Through the seconds of two numbers of trials."""
    (n1, t1), (n2, t2) = times.items()
    slope = (t2 - t1) / (n2 - n1)
    return {"fixed_seconds": t1 - n1 * slope, "seconds_a_trial": slope}


def _row(name: str, found: Mapping[str, tuple[float, float, float]]) -> dict[str, str]:
    def cell(key: str) -> str:
        if key not in found:
            return "-"
        low, middle, high = (f"{value:.4g}" for value in found[key])
        return f"{middle} ({low} to {high})"

    return {
        "trials": name,
        "sweep, s": cell("sweep_seconds"),
        "loop, s": cell("loop_seconds"),
        "trials an hour": cell("trials_an_hour"),
        "over the loop, %": cell("over_percent"),
        "machinery, %": cell("machinery_percent"),
    }


if __name__ == "__main__":
    main()
