"""Does `benchmarks/precision.py` compare what differs in precision alone, and go on where it stopped?"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from few_images import cut_few_images
from precision import summary

_ROOT = Path(__file__).parents[1]


def _run(runs: Path, dataset: str, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(_ROOT / "benchmarks" / "precision.py"), "--runs", str(runs)]
    command += ["--data", dataset, "--images", "0", "--encoder", "resnet_tiny", "--resize", "8"]
    command += ["--epochs", "1", "--batch-size", "16", "--num-splits", "2", *options]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)


def _row(seed: int, precision: str, accuracy: float) -> dict[str, Any]:
    return {"config": {"seed": seed, "precision": precision}, "accuracy": accuracy}


@pytest.mark.slow
def test_each_seed_runs_once_in_each_precision(tmp_path: Path) -> None:
    few_images, runs = cut_few_images(tmp_path / "few"), tmp_path / "runs.jsonl"
    first = _run(runs, few_images, "--seeds", "0")
    assert first.returncode == 0, first.stderr
    second = _run(runs, few_images, "--seeds", "0", "1")
    assert "seed 0, " not in second.stdout and "seed 1, bfloat16" in second.stdout
    rows = [json.loads(line) for line in runs.read_text().splitlines()]
    which = [(row["config"]["seed"], row["config"]["precision"]) for row in rows]
    assert which == [(seed, one) for seed in (0, 1) for one in ("float32", "bfloat16")]
    assert {row["config"]["dataset"] for row in rows} == {few_images}
    losses = [row["losses"][0] for row in rows]
    assert losses[0] != losses[1], "nothing was computed in bfloat16"
    assert losses[1] == pytest.approx(losses[0], rel=0.02), "and not from the same draws"
    assert abs(losses[2] - losses[0]) > abs(losses[1] - losses[0]), "seeds differ by more"
    assert {(row["num_train_images"], row["num_validation_images"]) for row in rows} == {(270, 30)}
    other = _run(runs, few_images, "--seeds", "0", "--batch-size", "8")
    assert other.returncode == 1
    assert other.stderr == "--runs holds trials of other settings or images: use another file\n"


def test_the_mean_is_of_differences_of_seeds_that_have_both() -> None:
    rows = [_row(0, "float32", 0.50), _row(0, "bfloat16", 0.51), _row(1, "bfloat16", 0.40)]
    assert [line["points"] for line in summary(rows)] == ["+1.00", "+1.00"]
    rows += [_row(1, "float32", 0.43)]
    *_, means = summary(rows)
    assert means == {
        "seed": "mean",
        "float32, %": "46.50",
        "bfloat16, %": "45.50",
        "points": "-1.00 ± 2.00",
    }
