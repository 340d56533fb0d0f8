"""Does `benchmarks/sweep.py` measure what it says: the same trials on both sides, lines, rates, percent?"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sweep import line, summary

_ROOT = Path(__file__).parents[1]


def test_a_line_through_two_times() -> None:
    assert line({1: 40.0, 5: 160.0}) == {"fixed_seconds": 10.0, "seconds_a_trial": 30.0}


def test_rates_and_percents_are_of_each_round() -> None:
    def a_round(t: float) -> dict[str, dict[int, float]]:
        times = {"sweep": {1: 2 * t, 3: 6 * t}, "loop": {1: t, 3: 5 * t}}
        return times | {"epochs of the sweep": {1: t, 3: 4 * t}, "epochs of the loop": {1: t, 3: 4 * t}}

    found = summary([a_round(10.0), a_round(10.0), a_round(1.0)])
    assert list(found["trials"]) == ["1", "3", "each further"]
    assert found["trials"]["3"]["over_percent"] == pytest.approx((20.0, 20.0, 20.0))
    assert found["trials"]["3"]["trials_an_hour"] == pytest.approx((180.0, 180.0, 990.0))
    assert found["trials"]["1"]["over_percent"] == pytest.approx((100.0, 100.0, 100.0))
    assert found["trials"]["1"]["machinery_percent"] == pytest.approx((100.0, 100.0, 100.0))
    assert found["trials"]["3"]["machinery_percent"] == pytest.approx((20.0, 20.0, 20.0))
    assert found["trials"]["each further"]["loop_seconds"] == pytest.approx((11.0, 20.0, 20.0))
    assert found["trials"]["each further"]["over_percent"] == pytest.approx((0.0, 0.0, 0.0))
    assert found["fixed_seconds_over"] == pytest.approx((5.5, 10.0, 10.0))


@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_beside_a_loop_over_its_trials(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, str(_ROOT / "benchmarks" / "sweep.py"), "--json", str(report)]
    command += ["--trials", "1", "2", "--seconds-per-trial", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(report.read_text())
    assert found["epochs"] >= 2
    assert list(found["trials"]) == ["1", "2", "each further"]
    for number in (1, 2):
        for side in ("sweep", "loop"):
            took = found["rounds"][0][f"epochs of the {side}"][str(number)]
            assert 0 < took < found["rounds"][0][side][str(number)]
    assert found["trials"]["2"]["trials_an_hour"][1] > 0
    assert "| each further |" in done.stdout
