"""`care-sweep train`: one trial in a terminal, and the same trial again from its checkpoint's config.json."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks.few_images import cut_few_images


def _train(home: Path, *arguments: str) -> Any:
    command = [sys.executable, "-m", "care_sweep.cli", "train", "--json", *arguments]
    environment = {**os.environ, "CARE_SWEEP_HOME": str(home), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_checkpoint_tells_how_to_train_it_again_to_the_byte(tmp_path: Path) -> None:
    dataset = cut_few_images(tmp_path / "few")
    changes = ["--set", "batch_size=32", "--set", "temperature=0.3", "--seed", "3", "--epochs", "2"]
    first = _train(tmp_path, "--space", "cifar10-mini", "--dataset", dataset, *changes)
    assert (first["config"]["seed"], first["config"]["temperature"], first["epochs"]) == (3, 0.3, 2)
    with tarfile.open(first["checkpoint"]) as archive:
        archive.extract("config.json", tmp_path, filter="data")
        member = archive.extractfile("manifest.json")
        assert member is not None
        told = json.load(member)["command"]
    program, *arguments = told.replace("config.json", str(tmp_path / "config.json")).split()
    assert (program, arguments[0]) == ("care-sweep", "train")
    again = _train(tmp_path, *arguments[1:], "--output", str(tmp_path / "again"))
    assert again["metrics"] == first["metrics"]
    assert Path(again["checkpoint"]).read_bytes() == Path(first["checkpoint"]).read_bytes()
