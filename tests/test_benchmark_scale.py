"""benchmarks/scale.py and shares.py, small: what they count, and that their promises hold at that size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.full
@pytest.mark.ray
def test_many_trials_sweeps_and_readers(tmp_path: Path) -> None:
    size = ["--trials", "40", "--sweeps", "10", "--readers", "100"]
    command = [sys.executable, BENCHMARKS / "scale.py", "--directory", tmp_path, *size]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(ran.stdout)
    assert [phase["broken"] for phase in found.values()] == [[], [], []]
    assert (found["trials"]["trials"], found["readers"]["told"]) == (40, 100)
    assert 1 < found["sweeps"]["most_active"] <= 8


@pytest.mark.full
@pytest.mark.ray
def test_two_sweeps_have_what_their_priorities_give_them() -> None:
    command = [sys.executable, BENCHMARKS / "shares.py", "--seconds", "60"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-2000:]
    found = json.loads(ran.stdout)
    assert (found["at_once_alone"], found["preempted"]) >= (4, 1)
