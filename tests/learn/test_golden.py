"""Twenty steps, loss by loss, as they were when the trace was written: a refactor must not move them.

What is meant to move them writes the trace anew, from this very code, and says so in its commit:

    GOLDEN_TRACE=write python -m pytest tests/learn/test_golden.py
"""

import dataclasses
import json
import os
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


def as_text(traces: dict[str, list[list[float]]]) -> str:
    """JSON with a step a line."""
    parts = [
        f"{json.dumps(name)}: [\n  " + ",\n  ".join(map(json.dumps, steps)) + "\n ]"
        for name, steps in traces.items()
    ]
    return "{\n " + ",\n ".join(parts) + "\n}\n"


def test_writing_the_trace_anew_changes_no_byte_of_what_is_as_it_was() -> None:
    assert as_text(json.loads(GOLDEN.read_text())) == GOLDEN.read_text()


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_twenty_steps_are_as_they_were(
    config: TrialConfig, tiny: Dataset, tmp_path: Path, weight: float
) -> None:
    """To 1e-5 for seven steps, then to 1 %: another processor adds in another order, and what that moves
    grows (seen: 1e-4 in the eighth where views round otherwise, 2e-3 in the twentieth)."""
    steps = twenty_steps(config.model_copy(update={"equivariance_weight": weight}), tiny, tmp_path)
    golden_steps, name = json.loads(GOLDEN.read_text()), f"equivariance_weight {weight}"
    if os.environ.get("GOLDEN_TRACE") == "write":
        golden_steps[name] = steps
        GOLDEN.write_text(as_text(golden_steps))
    expected = golden_steps[name]
    assert len(steps) == len(expected) == 20
    for number, (step, golden) in enumerate(zip(steps, expected, strict=True)):
        assert step == pytest.approx(golden, rel=1e-5 if number < 7 else 1e-2, abs=1e-7)
