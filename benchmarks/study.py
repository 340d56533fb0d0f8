"""Does training do what the paper says? Equivariance weights against SimCLR over seeds, and the loss's terms.

    python benchmarks/study.py --data parquet:CIFAR10 --directory study               weights and seeds
    python benchmarks/study.py --data parquet:CIFAR10 --directory study --ablation    terms of the loss

CIFAR10 is a folder of Hugging Face's Parquet files; `--data cifar10` reads torchvision's. Stop it whenever
you like and give the same command again: a finished run is not repeated, another goes on after its last
epoch. A directory with runs of other images or settings is refused. With `--minutes` it stops by itself. At
its end, and with `--table` without any training, it prints a Markdown table of all runs in the directory and
draws `weights.svg` there.

Images are a stratified part of CIFAR-10's train split, measures are taken on 10 % of that split that no run
trains on. The test split is not read. The recipe is the published one but for encoder, images and epochs.
"""

import argparse
import dataclasses
import hashlib
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import study_results
import torch
from side_by_side import machine

from care_sweep.errors import TrialCollapsed, TrialDiverged
from care_sweep.learn.data import Dataset, Split, load_dataset
from care_sweep.learn.randomness import generator
from care_sweep.learn.train import default_device, train, untrained
from care_sweep.settings import Settings
from care_sweep.spec import Measurement, TrialConfig
from care_sweep.storage.durable import write_durably


@dataclass(frozen=True)
class Run:
    """One row's share of the table: a configuration under one seed; without training, its starting point."""

    config: TrialConfig
    is_trained: bool = True

    @property
    def name(self) -> str:
        config = self.config
        if not self.is_trained:
            return f"untrained-seed-{config.seed}"
        return f"{config.objective}-weight-{config.equivariance_weight:g}-seed-{config.seed}"


class _TimeIsUp(Exception):  # noqa: N818  (nothing is wrong)
    pass


def main() -> None:
    arguments = _arguments()
    directory: Path = arguments.directory
    directory.mkdir(parents=True, exist_ok=True)
    if not arguments.table:
        plan, data = _plan(arguments), _images(arguments.data, arguments.images)
        _refuse_others(directory, plan[0].config, data)
        _run_all([run for run in plan if study_results.read(directory / run.name) is None], arguments)
    print(study_results.table(directory))
    study_results.draw(directory, directory / "weights.svg")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="as a sweep's `dataset`")
    parser.add_argument("--directory", type=Path, required=True, help="where runs and results are kept")
    parser.add_argument("--weights", type=float, nargs="+", default=[0, 0.1, 0.3, 1, 3], help="our scale")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ablation", action="store_true", help="the terms of the loss, under the first seed")
    parser.add_argument("--ablation-weight", type=float, default=30.0)
    parser.add_argument("--encoder", default="resnet_tiny")
    parser.add_argument("--images", type=int, default=10_000, help="to train on; 0: all")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--processes", type=int, help="runs at a time (a core each; on a GPU: 1)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop then, to go on later")
    parser.add_argument("--table", action="store_true", help="only print and draw what is there")
    return parser.parse_args()


def _plan(arguments: argparse.Namespace) -> list[Run]:
    """All runs, seed by seed, so that what is there is balanced whenever one looks."""
    recipe = TrialConfig(dataset=arguments.data, encoder=arguments.encoder, epochs=arguments.epochs)

    def run(seed: int, weight: float, objective: str = "infonce") -> Run:
        changes = {"seed": seed, "equivariance_weight": weight, "objective": objective}
        return Run(TrialConfig.model_validate({**recipe.model_dump(), **changes}))

    if arguments.ablation:
        seed, weight = arguments.seeds[0], arguments.ablation_weight
        terms = [(weight, "none"), (0.0, "uniformity"), (weight, "uniformity"), (0.0, "infonce")]
        return [run(seed, *term) for term in [*terms, (weight, "infonce")]]
    runs = []
    for seed in arguments.seeds:
        runs.append(Run(run(seed, 0.0).config, is_trained=False))
        runs += [run(seed, weight) for weight in arguments.weights]
    return runs


def _refuse_others(directory: Path, config: TrialConfig, data: Dataset) -> None:
    """End here if the directory holds runs that no table can hold beside those that are asked for."""
    asked = study_results.common({"config": config.model_dump(mode="json"), "data": data.fingerprint})
    if any(study_results.common(found) != asked for found in study_results.ended(directory)):
        raise SystemExit(f"{directory} holds runs of other settings or images: use another --directory")


# --- running ------------------------------------------------------------------------------------------------


def _run_all(runs: list[Run], arguments: argparse.Namespace) -> None:
    cores, on_gpu = os.cpu_count() or 1, torch.cuda.is_available()
    num_processes = arguments.processes or (1 if on_gpu else cores)
    deadline = time.time() + 60 * arguments.minutes
    start = (arguments.data, arguments.images, max(1, cores // num_processes))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, context, initializer=_begin, initargs=start) as pool:
        futures = {pool.submit(_run, run, arguments.directory / run.name, deadline): run for run in runs}
        for future in as_completed(futures):
            print(f"{futures[future].name}: {future.result()}", flush=True)


_DATA: list[Dataset] = []  # of this process, read once


def _begin(data: str, num_images: int, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    _DATA[:] = [_images(data, num_images)]


def _images(name: str, num_images: int) -> Dataset:
    settings = Settings.from_environment(os.environ)
    return part_of(load_dataset(name, download_directory=settings.download_directory), num_images)


def part_of(data: Dataset, num_images: int) -> Dataset:
    """The dataset with `num_images` of its train images, equally many of each class, drawn by seed 0."""
    if num_images == 0:
        return data
    num_classes = len(data.class_names)
    order = torch.randperm(len(data.train.labels), generator=generator(0, "permutation"))
    labels = data.train.labels[order]
    rows = torch.cat([order[labels == c][: num_images // num_classes] for c in range(num_classes)]).sort()[0]
    if len(rows) != num_images:
        raise SystemExit(f"--images {num_images}: {data.name} has {len(rows)} to give, equally by class")
    name = f"{data.fingerprint}, {num_images} train images".encode()
    part = Split(data.train.images[rows], data.train.labels[rows])
    return dataclasses.replace(data, train=part, fingerprint=hashlib.sha256(name).hexdigest())


def _run(run: Run, directory: Path, deadline: float) -> str:
    """Go on with one run until its end or the deadline; what became of it, in words."""
    (data,) = _DATA
    if time.time() >= deadline:
        return "not begun"
    directory.mkdir(parents=True, exist_ok=True)
    if not run.is_trained:
        return _keep(run, directory, data, "UNTRAINED", untrained(run.config, data), 0.0)
    log = directory / "measurements.jsonl"
    measured = study_results.measurements(directory)
    resume_from = directory / f"state-{measured[-1]['epoch']:05d}.pt" if measured else None

    def report(measurement: Measurement) -> None:
        if not parent.is_alive():
            raise SystemExit("the study was killed; whoever goes on with it trains this epoch again")
        with log.open("a") as file:
            file.write(measurement.model_dump_json() + "\n")
        if measurement.epoch < run.config.epochs and time.time() >= deadline:
            raise _TimeIsUp

    parent = multiprocessing.parent_process()
    assert parent is not None, "runs are trained in the pool's processes"
    seconds_before = sum(one["seconds"] for one in measured)
    started = time.perf_counter()
    try:
        train(run.config, data, report, directory=directory, resume_from=resume_from)
        outcome, metrics = "COMPLETE", study_results.measurements(directory)[-1]["metrics"]
    except _TimeIsUp:
        return f"stopped after epoch {study_results.measurements(directory)[-1]['epoch']}"
    except TrialCollapsed as error:
        outcome, metrics = "INFEASIBLE(collapsed)", dict(error.metrics)
    except TrialDiverged:
        outcome, metrics = "FAILED(diverged)", {}
    return _keep(run, directory, data, outcome, metrics, seconds_before + time.perf_counter() - started)


def _keep(
    run: Run, directory: Path, data: Dataset, outcome: str, metrics: dict[str, float], seconds: float
) -> str:
    result: dict[str, Any] = {
        "config": run.config.model_dump(mode="json"),
        "data": data.fingerprint,
        "outcome": outcome,
        "metrics": metrics,
        "seconds": seconds,
        "num_train_images": len(data.train.labels),
        "num_epochs": len(study_results.measurements(directory)),
        "machine": machine(default_device()),
    }
    write_durably(directory / study_results.RESULT_NAME, json.dumps(result, indent=2).encode())
    for state in directory.glob("state-*.pt"):
        state.unlink()
    return f"{outcome}, {seconds:.0f} s"


if __name__ == "__main__":
    main()
