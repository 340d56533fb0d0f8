"""What does one trial do, seen in a terminal? `care-sweep train`: no service, no Ray, one progress bar."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from care_sweep.documents import parse
from care_sweep.errors import CheckpointError, InvalidDocument, Problem
from care_sweep.settings import Settings
from care_sweep.spec import CategoricalParameter, Measurement, Scalar, SearchSpace, TrialConfig

__all__ = ["MEASUREMENTS_NAME", "configure", "train_one"]

MEASUREMENTS_NAME = "measurements.jsonl"

_CONFIG_NAME = "config.json"


def configure(space: SearchSpace, overrides: Mapping[str, Scalar]) -> TrialConfig:
    """The trial that a space stands for: each parameter at its default, else as in the first baseline that
    has it, else its first choice; `overrides` win over these and over what is fixed.

    Raises:
        InvalidDocument: a parameter has none of these, or an override is unknown or unfit.
    """
    values: dict[str, Scalar] = {}
    for name, parameter in space.parameters.items():
        if name in overrides or not parameter.is_active({**values, **overrides}):
            continue
        known = [baseline[name] for baseline in space.baselines if name in baseline]
        if parameter.default is not None:
            values[name] = parameter.default
        elif known:
            values[name] = known[0]
        elif isinstance(parameter, CategoricalParameter):
            values[name] = parameter.choices[0]
        else:
            detail = f"{space.name} has no default for it; give one, as in --set {name}=VALUE"
            raise InvalidDocument([Problem(f"/parameters/{name}", detail)])
    return parse(TrialConfig, {**space.fixed, **values, **overrides})


def train_one(
    console: Console,
    config: TrialConfig,
    settings: Settings,
    directory: Path,
    *,
    download: bool,
    resume: bool,
) -> dict[str, Any]:
    """Train, evaluate and save one trial; the last measurement, and where its checkpoint lies.

    Interrupted, it says which command goes on, and lets the KeyboardInterrupt pass.

    Raises:
        CheckpointError: there is no state to resume from.
    """
    states = _states(directory)
    if resume and not states:
        raise CheckpointError(f"{directory} holds no training state to go on from; leave out --resume")
    from care_sweep.learn.data import load_dataset  # noqa: PLC0415  (torch loads only for this command)
    from care_sweep.learn.train import train  # noqa: PLC0415

    data = load_dataset(
        config.dataset,
        download_directory=settings.download_directory,
        resize=config.resize,
        download=download,
    )
    if not resume:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / _CONFIG_NAME).write_text(config.model_dump_json(indent=2) + "\n")
    measurements: list[Measurement] = []
    log = directory / MEASUREMENTS_NAME
    log.parent.mkdir(parents=True, exist_ok=True)
    if not states:
        log.unlink(missing_ok=True)
    with _progress(console) as progress:
        task = progress.add_task("epochs", total=config.epochs, metric="")

        def report(measurement: Measurement) -> None:
            measurements.append(measurement)
            with log.open("a") as file:
                file.write(measurement.model_dump_json() + "\n")
            accuracy = measurement.metrics["validation_knn_accuracy"]
            progress.update(task, completed=measurement.epoch, metric=f"validation kNN {accuracy:.4f}")

        try:
            train(config, data, report, directory=directory, resume_from=states[-1] if resume else None)
        except KeyboardInterrupt:
            progress.console.print(_how_to_go_on(directory), soft_wrap=True, highlight=False, markup=False)
            raise
    last = measurements[-1]
    return {
        "config": config.model_dump(mode="json"),
        "epochs": last.epoch,
        "metrics": last.metrics,
        "checkpoint": str(directory / last.checkpoint.name) if last.checkpoint else None,
    }


def _states(directory: Path) -> list[Path]:
    """The training states in a folder, the newest last."""
    return sorted(directory.glob("state-*.pt"))


def _how_to_go_on(directory: Path) -> str:
    if not _states(directory):
        return "interrupted in the first epoch: there is nothing to go on from"
    config = str(directory / _CONFIG_NAME)
    command = ["care-sweep", "train", "--config", config, "--output", str(directory), "--resume"]
    return f"interrupted; to go on: {shlex.join(command)}"


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[metric]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
