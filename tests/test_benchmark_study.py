"""Does `benchmarks/study.py` survive a kill, go on and find the same as if nothing had happened?"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

_STUDY = Path(__file__).parents[1] / "benchmarks" / "study.py"
_SMALL = ["--data", "cifar10-mini", "--images", "300", "--processes", "1", "--seeds", "0", "--weights", "1"]
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
    assert not list((killed / _RUN).glob("state-*.pt"))
    assert "| InfoNCE + 1 L_equi | 1 |" in undisturbed.stdout
    assert "| untrained | 1 |" in undisturbed.stdout
    assert (whole / "weights.svg").read_text().startswith("<svg")


@pytest.mark.slow
def test_runs_of_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    result = tmp_path / _RUN / "result.json"
    result.parent.mkdir()
    result.write_text(json.dumps({"config": {}, "metrics": {}}))
    refused = _study(tmp_path)
    assert refused.returncode == 1
    assert "use another --directory" in refused.stderr
