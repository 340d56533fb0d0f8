"""How are curves recorded? One full-length training after the other, at points spread over a search space."""

import dataclasses
import os
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import curves
import torch
from side_by_side import machine
from study import part_of

from care_sweep.documents import parse
from care_sweep.errors import TrialCollapsed, TrialDiverged
from care_sweep.learn.data import Dataset, load_dataset
from care_sweep.learn.train import default_device, measured_epochs
from care_sweep.search.catalog import read_document
from care_sweep.settings import Settings
from care_sweep.spec import Scalar, SearchSpace, TrialState

__all__ = ["record"]

_SIGNIFICANT_DIGITS = 6


def record(
    file: Path, *, data_name: str, space_file: Path, num_images: int, num_runs: int, seed: int, command: str
) -> None:
    """Add to the file the runs that it lacks.

    Args:
        data_name: as a sweep's `dataset`.
        num_images: to train on, as `study.part_of` draws them; 0: all.
        num_runs: that the file shall hold.
        seed: of the points (a scrambled Sobol sequence) and of every training.
        command: that is kept as the one which recorded the curves.
    """
    device = default_device()
    if device.type == "cpu":
        torch.set_num_threads(1)
    space = parse(SearchSpace, read_document(space_file.read_bytes()))
    data = _images(data_name, space, num_images)
    what = {
        "space": space.model_dump(mode="json", exclude_none=True),
        "seed": seed,
        "data": data.fingerprint,
        "num_train_images": len(data.train.labels),
        "num_validation_images": len(data.validation.labels),
        "seconds": "of one thread" if device.type == "cpu" else "of a GPU",
    }
    recording = _begun(file, {"command": command, **what, "machine": machine(device)})
    recording.head["command"] = command  # with the number of runs that there will be
    if any(recording.head[name] != value for name, value in what.items()):
        raise SystemExit(f"{file} holds runs of other settings: use another file")
    engine = torch.quasirandom.SobolEngine(len(space.parameters), scramble=True, seed=seed)
    points = engine.draw(num_runs, dtype=torch.float64).tolist()
    # a process's first epoch is slower
    next(measured_epochs(space.trial_config({}, seed), data, device=device))
    for number in range(len(recording.curves), num_runs):
        parameters = curves.values_at(space, points[number])
        curve = _curve(number, parameters, space, seed, data)
        recording = dataclasses.replace(recording, curves=(*recording.curves, curve))
        curves.write(file, recording)
        accuracies = curve.metrics["validation_knn_accuracy"]
        print(f"{number}: {curve.state}, {accuracies[-1]:.4f}, {sum(curve.seconds):.0f} s", flush=True)


def _images(name: str, space: SearchSpace, num_images: int) -> Dataset:
    settings = Settings.from_environment(os.environ)
    config = space.trial_config({})
    data = load_dataset(name, download_directory=settings.download_directory, resize=config.resize)
    return part_of(data, num_images)


def _begun(file: Path, head: dict[str, Any]) -> curves.Recording:
    if file.exists():
        return curves.read(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    return curves.Recording(head, ())


def _curve(
    number: int, parameters: dict[str, Scalar], space: SearchSpace, seed: int, data: Dataset
) -> curves.Curve:
    """A run until its end, without the measures that only the last epoch has: the search reads none of them,
    and they would double the time of so small a run."""
    config = space.trial_config(parameters, seed)
    state, metrics, seconds = TrialState.COMPLETE, defaultdict(list), []
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time

    def keep(measured: Mapping[str, float]) -> None:
        for name in sorted(measured.keys() - {"num_validation_images"}):
            metrics[name].append(float(f"{measured[name]:.{_SIGNIFICANT_DIGITS}g}"))

    began = clock()
    try:
        for measured in measured_epochs(config, data, device=default_device()):
            seconds.append(clock() - began)
            began = clock()
            keep(measured)
    except (TrialCollapsed, TrialDiverged) as error:
        seconds.append(clock() - began)
        state = TrialState.FAILED
        if isinstance(error, TrialCollapsed):
            state = TrialState.INFEASIBLE
            keep(error.metrics)
    return curves.Curve(number, parameters, state, dict(metrics), [round(one, 3) for one in seconds])
