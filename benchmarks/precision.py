"""Does bfloat16 cost accuracy? The same trials, seed by seed, in float32 and in bfloat16.

    PYTHONPATH=. python benchmarks/precision.py --data parquet:CIFAR10 --runs precision.jsonl

Each seed has the same images, start and draws in both precisions. Compared is what trials are ranked by, the
kNN accuracy on the validation images after the last epoch. Rounding sends two trainings apart, almost as
another seed would, so the mean over seeds is what counts, and its standard error stands beside it. Stop it
whenever you like and give the same command again: what the file holds is not repeated. A processor without
instructions for bfloat16 computes it all the same, slowly.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from side_by_side import machine, table
from study import part_of

from care_sweep.learn.data import Dataset, load_dataset
from care_sweep.learn.train import default_device, measured_epochs
from care_sweep.memory import keep_freed_memory
from care_sweep.settings import Settings
from care_sweep.spec import TrialConfig

_PRECISIONS = ("float32", "bfloat16")


def main() -> None:
    arguments = _arguments()
    keep_freed_memory()
    device = default_device()
    settings = Settings.from_environment(os.environ)
    data = load_dataset(
        arguments.data, download_directory=settings.download_directory, resize=arguments.resize
    )
    data = part_of(data, arguments.images).on(device)
    told = ("encoder", "epochs", "batch_size", "num_splits", "resize")
    changes = {"dataset": arguments.data, **{name: getattr(arguments, name) for name in told}}
    for seed in arguments.seeds:
        for precision in _PRECISIONS:
            config = TrialConfig.model_validate({**changes, "seed": seed, "precision": precision})
            what = {"config": config.model_dump(mode="json"), "data": data.fingerprint}
            if not any(_is_of(row, what) for row in _rows(arguments.runs)):
                row = {**what, **_run(config, data, device), "machine": machine(device)}
                with arguments.runs.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    print(table(summary(_rows(arguments.runs))))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="the file, begun or gone on with")
    parser.add_argument("--data", default="cifar10", help="as a sweep's `dataset`")
    parser.add_argument("--images", type=int, default=10_000, help="to train on; 0: all")
    parser.add_argument("--resize", type=int, help="pixels of a side")
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--num-splits", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser.parse_args()


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _is_of(row: Mapping[str, Any], what: Mapping[str, Any]) -> bool:
    """Whether a row is of this run; a file of other trials is refused.

    Raises:
        SystemExit: it is of a trial that differs in more than seed and precision.
    """
    if _trial(row) != _trial(what):
        raise SystemExit("--runs holds trials of other settings or images: use another file")
    return row["config"] == what["config"]


def _trial(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row["config"], "seed": None, "precision": None, "data": row["data"]}


def _run(config: TrialConfig, data: Dataset, device: torch.device) -> dict[str, Any]:
    """Train, and measure each epoch."""
    started = time.perf_counter()
    epochs = list(measured_epochs(config, data, device=device))
    accuracy = epochs[-1]["validation_knn_accuracy"]
    print(f"seed {config.seed}, {config.precision}: {100 * accuracy:.2f} %", flush=True)
    return {
        "num_train_images": len(data.train.labels),
        "num_validation_images": len(data.validation.labels),
        "losses": [epoch["train_loss"] for epoch in epochs],
        "accuracy": accuracy,
        "seconds": time.perf_counter() - started,
    }


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Percent in both precisions of each seed that has both, their difference in points, and the means."""
    found = {(row["config"]["seed"], row["config"]["precision"]): 100 * row["accuracy"] for row in rows}
    seeds = sorted({seed for seed, _ in found if all((seed, one) in found for one in _PRECISIONS)})
    full, low = ([found[seed, one] for seed in seeds] for one in _PRECISIONS)
    points = [after - before for before, after in zip(full, low, strict=True)]
    lines = [_row(str(seed), *line) for seed, *line in zip(seeds, full, low, points, strict=True)]
    means = _row("mean", mean(full), mean(low), mean(points))
    if len(points) > 1:
        means["points"] += f" ± {stdev(points) / math.sqrt(len(points)):.2f}"
    return [*lines, means]


def _row(seed: str, full: float, low: float, points: float) -> dict[str, str]:
    return {
        "seed": seed,
        "float32, %": f"{full:.2f}",
        "bfloat16, %": f"{low:.2f}",
        "points": f"{points:+.2f}",
    }


if __name__ == "__main__":
    main()
