"""Twenty steps, loss by loss, as they were when the trace was written: a refactor must not move them."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from care_sweep.learn.data import Dataset, Split
from care_sweep.learn.train import train
from care_sweep.spec import Measurement, TrialConfig

GOLDEN = Path(__file__).with_name("golden_trace.json")
NAMES = ("train_loss", "train_info_nce", "train_equivariance")


def twenty_steps(config: TrialConfig, data: Dataset, directory: Path) -> list[list[float]]:
    """The losses of 20 epochs of one step: 32 of 40 images, others each time."""
    few = dataclasses.replace(data, train=Split(data.train.images[:40], data.train.labels[:40]))
    measurements: list[Measurement] = []
    config = config.model_copy(update={"epochs": 20, "warmup_epochs": 5})
    train(config, few, measurements.append, directory=directory, device=torch.device("cpu"))
    return [[m.metrics[name] for name in NAMES] for m in measurements]


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_twenty_steps_are_as_they_were(
    config: TrialConfig, tiny: Dataset, tmp_path: Path, weight: float
) -> None:
    """To 1e-4 and not to the bit: another processor adds in another order."""
    steps = twenty_steps(config.model_copy(update={"equivariance_weight": weight}), tiny, tmp_path)
    expected = json.loads(GOLDEN.read_text())[f"equivariance_weight {weight}"]
    assert len(steps) == len(expected) == 20
    for step, golden in zip(steps, expected, strict=True):
        assert step == pytest.approx(golden, rel=1e-4, abs=1e-7)
