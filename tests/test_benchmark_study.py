"""Does `benchmarks/study.py` survive a kill, go on and find the same as if nothing had happened?"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import study
import study_results

from care_sweep import load
from care_sweep.learn.data import BUNDLED_IMAGES, load_dataset
from care_sweep.spec import TrialConfig

_STUDY = Path(__file__).parents[1] / "benchmarks" / "study.py"
_SMALL = [
    "--data",
    f"parquet:{BUNDLED_IMAGES}",
    "--images",
    "300",
    "--processes",
    "1",
    "--seeds",
    "0",
    "--weights",
    "1",
]
_RUN = "infonce-weight-1-seed-0"


def _command(directory: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(_STUDY), *_SMALL, "--directory", str(directory), *arguments]


def _study(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = _command(directory, *arguments)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)


def _kill_after_an_epoch(directory: Path) -> None:
    log = directory / _RUN / "measurements.jsonl"
    with subprocess.Popen(_command(directory, "--epochs", "3"), start_new_session=True) as process:
        while not (log.exists() and log.read_text()):
            assert process.poll() is None, "the study ended before its first epoch"
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_study_goes_on_and_finds_what_an_undisturbed_one_does(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = _study(whole, "--epochs", "3")
    assert undisturbed.returncode == 0, undisturbed.stderr
    _kill_after_an_epoch(killed)
    assert not (killed / _RUN / "result.json").exists()

    out_of_time = _study(killed, "--epochs", "3", "--minutes", "0.0001")
    assert f"{_RUN}: not begun" in out_of_time.stdout
    assert _study(killed, "--epochs", "3").returncode == 0

    results = [json.loads((directory / _RUN / "result.json").read_text()) for directory in (whole, killed)]
    assert results[0]["outcome"] == "COMPLETE"
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["data"] == results[1]["data"]
    assert not list((killed / _RUN).glob("state-*.pt"))
    assert load(killed / _RUN / "checkpoint.tar").config.dataset == f"parquet:{BUNDLED_IMAGES}"
    assert "| InfoNCE + 1 L_equi | 1 |" in undisturbed.stdout
    assert "| untrained | 1 |" in undisturbed.stdout
    assert (whole / "weights.svg").read_text().startswith("<svg")

    refused = _study(whole, "--epochs", "3", "--seeds", "1", "--encoder", "resnet18")
    assert refused.returncode == 1
    assert "use another --directory" in refused.stderr


def _end(directory: Path, outcome: str, *, data: str = "a", accuracy: float = 0.5, **changes: Any) -> None:
    """Leave what a run leaves."""
    config = TrialConfig.model_validate({"equivariance_weight": 30.0, **changes})
    result = {
        "config": config.model_dump(mode="json"),
        "data": data,
        "outcome": outcome,
        "metrics": {"validation_knn_accuracy": accuracy},
        "seconds": 1.0,
        "num_train_images": 100,
        "num_epochs": 3,
        "machine": dict.fromkeys(("commit", "device", "num_threads", "torch", "python"), "some"),
    }
    directory.mkdir(parents=True)
    (directory / study_results.RESULT_NAME).write_text(json.dumps(result))


def test_a_mean_is_of_runs_that_ended_alike(tmp_path: Path) -> None:
    _end(tmp_path / "0", "COMPLETE", seed=0, accuracy=0.5)
    _end(tmp_path / "1", "INFEASIBLE(collapsed)", seed=1, accuracy=0.1)
    _end(tmp_path / "2", "COMPLETE", seed=2, accuracy=0.6)
    rows = [line for line in study_results.table(tmp_path).splitlines() if "L_equi" in line]
    assert rows[0].startswith("| InfoNCE + 30 L_equi | 2 | 55.0 ± 7.1 | ") and rows[0].endswith(" COMPLETE |")
    assert rows[1].startswith("| InfoNCE + 30 L_equi | 1 | 10.0 | ")
    assert rows[1].endswith(" INFEASIBLE(collapsed) after 4 epochs |")


@pytest.mark.parametrize("other", [{"data": "b"}, {"epochs": 2}, {"encoder": "resnet_tiny"}])
def test_no_table_is_of_unlike_runs(tmp_path: Path, other: dict[str, Any]) -> None:
    _end(tmp_path / "0", "COMPLETE", seed=0)
    _end(tmp_path / "1", "COMPLETE", **{"seed": 1, **other})
    with pytest.raises(SystemExit, match="differ in more than loss and seed"):
        study_results.table(tmp_path)


def test_a_run_joins_runs_of_its_settings_and_images_alone(tmp_path: Path) -> None:
    data = load_dataset("cifar10-mini", download_directory=tmp_path)
    _end(tmp_path / "0", "COMPLETE", seed=0, data=data.fingerprint)
    study._refuse_others(tmp_path, TrialConfig(seed=1, equivariance_weight=3.0), data)
    for config, images in ((TrialConfig(epochs=2), data), (TrialConfig(), study.part_of(data, 100))):
        with pytest.raises(SystemExit, match="use another --directory"):
            study._refuse_others(tmp_path, config, images)


def test_a_result_that_does_not_tell_its_images_is_of_others(tmp_path: Path) -> None:
    _end(tmp_path / "0", "COMPLETE", seed=0)
    path = tmp_path / "0" / study_results.RESULT_NAME
    result = json.loads(path.read_text())
    del result["data"]
    path.write_text(json.dumps(result))
    data = load_dataset("cifar10-mini", download_directory=tmp_path)
    with pytest.raises(SystemExit, match="use another --directory"):
        study._refuse_others(tmp_path, TrialConfig(equivariance_weight=30.0), data)
