"""How do tests train? On the CPU, with what was reported as the answer."""

from collections.abc import Callable
from pathlib import Path

import torch

from care_sweep.learn.data import Dataset
from care_sweep.learn.train import train
from care_sweep.spec import Measurement, TrialConfig

CPU = torch.device("cpu")


def run(
    config: TrialConfig,
    data: Dataset,
    directory: Path,
    *,
    device: torch.device = CPU,
    num_devices: int = 1,
    resume_from: Path | None = None,
    then: Callable[[Measurement], None] = lambda _: None,
) -> list[Measurement]:
    reported: list[Measurement] = []

    def report(measurement: Measurement) -> None:
        reported.append(measurement)
        then(measurement)

    train(
        config,
        data,
        report,
        directory=directory,
        device=device,
        num_devices=num_devices,
        resume_from=resume_from,
    )
    return reported


def trace(measurements: list[Measurement]) -> list[dict[str, float]]:
    return [measurement.metrics for measurement in measurements]


def stop_after(epoch: int) -> Callable[[Measurement], None]:
    def stop(measurement: Measurement) -> None:
        if measurement.epoch == epoch:
            raise SystemExit(0)

    return stop
