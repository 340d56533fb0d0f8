"""`care-sweep train`: one trial in a terminal, and the same trial again from its checkpoint's config.json."""

import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.few_images import cut_few_images


def _start(home: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "care_sweep.cli", "train", "--json", *arguments]
    environment = {**os.environ, "CARE_SWEEP_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _train(home: Path, *arguments: str) -> Any:
    process = _start(home, *arguments)
    printed, said = process.communicate()
    assert process.returncode == 0, said
    return json.loads(printed)


@pytest.mark.slow
def test_a_checkpoint_tells_how_to_train_it_again_to_the_byte(tmp_path: Path) -> None:
    dataset = cut_few_images(tmp_path / "few")
    changes = ["--set", "batch_size=32", "--set", "temperature=0.3", "--seed", "3", "--epochs", "2"]
    first = _train(tmp_path, "--space", "cifar10-mini", "--dataset", dataset, *changes)
    assert (first["config"]["seed"], first["config"]["temperature"], first["epochs"]) == (3, 0.3, 2)
    with tarfile.open(first["checkpoint"]) as archive:
        config, manifest = (archive.extractfile(name) for name in ("config.json", "manifest.json"))
        assert config is not None
        assert manifest is not None
        (tmp_path / "config.json").write_bytes(config.read())
        told = json.load(manifest)["command"]
    program, *arguments = told.replace("config.json", str(tmp_path / "config.json")).split()
    assert (program, arguments[0]) == ("care-sweep", "train")
    again = _train(tmp_path, *arguments[1:], "--output", str(tmp_path / "again"))
    lines = (tmp_path / "again" / "measurements.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    assert json.loads(lines[-1])["metrics"] == again["metrics"]
    assert again["metrics"] == first["metrics"]
    assert Path(again["checkpoint"]).read_bytes() == Path(first["checkpoint"]).read_bytes()


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    dataset = cut_few_images(tmp_path / "few")
    output = tmp_path / "a folder"
    changes = ["--dataset", dataset, "--set", "batch_size=32", "--output", str(output)]
    said = _interrupted(tmp_path, output, 1, "--space", "cifar10-mini", *changes)
    told = said.partition("to go on: ")[2].splitlines()[0]
    program, command, *arguments = shlex.split(told)
    assert (program, command) == ("care-sweep", "train")
    assert "to go on: " + told in _interrupted(tmp_path, output, _newest(output) + 1, *arguments)


def _newest(output: Path) -> int:
    """The epoch of the newest training state."""
    return max((int(state.stem.removeprefix("state-")) for state in output.glob("state-*.pt")), default=0)


def _interrupted(home: Path, output: Path, epoch: int, *arguments: str) -> str:
    """What is said after Ctrl-C once there is a state of this epoch or a later one."""
    with _start(home, *arguments) as process:
        while _newest(output) < epoch and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    return said
