"""What does one trial do, seen in a terminal? `care-sweep train`: no service, no Ray, one progress bar."""

import json
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
from care_sweep.errors import CheckpointError, Conflict, InvalidDocument, Problem
from care_sweep.memory import keep_freed_memory
from care_sweep.settings import Settings
from care_sweep.spec import CategoricalParameter, Measurement, Scalar, SearchSpace, TrialConfig
from care_sweep.storage.durable import write_durably

__all__ = ["MEASUREMENTS_NAME", "configure", "train_one"]

MEASUREMENTS_NAME = "measurements.jsonl"

_CONFIG_NAME = "config.json"
_CHECKPOINT_NAME = "checkpoint.tar"  # learn.checkpoint's, which would load torch


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
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train, evaluate and save one trial; the last measurement, and where its checkpoint lies.

    A folder holds one trial. Its log has one line for each epoch: what is resumed goes on from the state of
    the last epoch that has its line. Interrupted, it says which command goes on, and lets the
    KeyboardInterrupt pass.

    Raises:
        Conflict: the folder holds a trial, which is neither to be resumed nor overwritten.
        CheckpointError: there is no state to resume from.
    """
    log = directory / MEASUREMENTS_NAME
    state, lines = _where_to_go_on(directory) if resume else (None, [])
    if not (resume or overwrite):
        _refuse_a_second_trial(directory)
    keep_freed_memory()
    from care_sweep.learn.data import load_dataset  # noqa: PLC0415  (torch loads only for this command)
    from care_sweep.learn.train import train  # noqa: PLC0415

    data = load_dataset(
        config.dataset,
        download_directory=settings.download_directory,
        resize=config.resize,
        download=download,
    )
    directory.mkdir(parents=True, exist_ok=True)
    if overwrite:
        for path in _trial_files(directory):
            path.unlink()
    if state is None:
        (directory / _CONFIG_NAME).write_text(config.model_dump_json(indent=2) + "\n")
    measurements: list[Measurement] = []
    with _progress(console) as progress:
        task = progress.add_task("epochs", total=config.epochs, metric="")

        def report(measurement: Measurement) -> None:
            if not measurements:  # what is after the state is told again
                write_durably(log, "".join(lines[: measurement.epoch - 1]).encode())
            measurements.append(measurement)
            with log.open("a") as file:
                file.write(measurement.model_dump_json() + "\n")
            accuracy = measurement.metrics["validation_knn_accuracy"]
            progress.update(task, completed=measurement.epoch, metric=f"validation kNN {accuracy:.4f}")

        try:
            train(config, data, report, directory=directory, resume_from=state)
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


def _trial_files(directory: Path) -> list[Path]:
    """What a trial has left in a folder."""
    names = (MEASUREMENTS_NAME, _CHECKPOINT_NAME, _CONFIG_NAME)
    return [*_states(directory), *(directory / name for name in names if (directory / name).exists())]


def _refuse_a_second_trial(directory: Path) -> None:
    found = [path.name for path in _trial_files(directory) if path.name != _CONFIG_NAME]
    if found:
        raise Conflict(
            f"{directory} holds a trial already ({', '.join(found)}): go on with it (--resume), name another "
            "folder (--output), or remove it (--overwrite)"
        )


def _where_to_go_on(directory: Path) -> tuple[Path | None, list[str]]:
    """The state of the last epoch that the log has, and the log's lines up to it; None to start anew.

    A state is durable before its epoch has its line: interrupted in between, that epoch is trained again,
    from the state before it, to the same bits.

    Raises:
        CheckpointError: there is no state, or none that the log goes up to.
    """
    states = {int(path.stem.removeprefix("state-")): path for path in _states(directory)}
    if not states:
        raise CheckpointError(f"{directory} holds no training state to go on from; leave out --resume")
    lines = _lines(directory / MEASUREMENTS_NAME)
    epoch = max((epoch for epoch in states if epoch <= len(lines)), default=None)
    if epoch is not None:
        return states[epoch], lines[:epoch]
    if min(states) == 1:  # interrupted between the first state and its line
        return None, []
    raise CheckpointError(
        f"{directory / MEASUREMENTS_NAME} has the epochs up to {len(lines)}, but the states are of epoch "
        f"{' and '.join(map(str, states))}: train anew (--overwrite)"
    )


def _lines(log: Path) -> list[str]:
    """The lines of epochs 1, 2, 3 and so on, as far as they are whole."""
    lines: list[str] = []
    for line in log.read_text().splitlines(keepends=True) if log.is_file() else []:
        try:
            epoch = parse(Measurement, json.loads(line)).epoch
        except ValueError:
            break
        if epoch != len(lines) + 1 or not line.endswith("\n"):
            break
        lines.append(line)
    return lines


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
