"""How are curves recorded? One full-length training after the other, at points spread over a search space."""

import dataclasses
import os
import time
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import curves
import torch
from side_by_side import machine
from study import part_of

from care_sweep.documents import parse
from care_sweep.errors import TrialCollapsed, TrialDiverged
from care_sweep.learn.data import Dataset, load_dataset
from care_sweep.learn.train import default_device, train
from care_sweep.search.catalog import read_document
from care_sweep.settings import Settings
from care_sweep.spec import Measurement, Scalar, SearchSpace, TrialConfig, TrialState

__all__ = ["record"]

_SIGNIFICANT_DIGITS = 6


class _Enough(Exception):  # noqa: N818  (nothing is wrong)
    pass


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
    _measure(space.trial_config({}, seed), data, 1)  # the first epoch of a process is slower than its others
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
    config = space.trial_config(parameters, seed)
    state, measured, seconds = _measure(config, data, config.epochs)
    metrics = defaultdict(list)
    for one in measured:
        for name in sorted(one.keys() - {"num_validation_images"}):
            metrics[name].append(float(f"{one[name]:.{_SIGNIFICANT_DIGITS}g}"))
    return curves.Curve(number, parameters, state, dict(metrics), [round(one, 3) for one in seconds])


def _measure(
    config: TrialConfig, data: Dataset, num_epochs: int
) -> tuple[TrialState, list[dict[str, float]], list[float]]:
    """State, measurements and seconds of a run.

    The training is one of an epoch more, left before that: at a constant learning rate its epochs are those
    of the shorter one, and the measures that only a trial's end has are not taken. They would double the
    time of so small a run, and the search reads none of them.
    """
    assert config.schedule == "constant", "the rate of an epoch depends on how many will follow"
    measured, seconds = [], []
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    last = clock()

    def report(measurement: Measurement) -> None:
        nonlocal last
        measured.append(measurement.metrics)
        seconds.append(clock() - last)
        last = clock()
        if measurement.epoch == num_epochs:
            raise _Enough

    state = TrialState.FAILED
    with TemporaryDirectory(prefix="care-sweep-fidelity-") as directory:
        try:
            train(
                config.model_copy(update={"epochs": config.epochs + 1}),
                data,
                report,
                directory=Path(directory),
            )
        except _Enough:
            return TrialState.COMPLETE, measured, seconds
        except TrialCollapsed as error:
            measured.append(dict(error.metrics))
            state = TrialState.INFEASIBLE
        except TrialDiverged:
            pass
    seconds.append(clock() - last)
    return state, measured, seconds
