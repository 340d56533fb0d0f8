"""Does an instance keep its promises when its processes die? `benchmarks/chaos.py --quick`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

_CHAOS = Path(__file__).parents[1] / "benchmarks" / "chaos.py"


@pytest.mark.ray
@pytest.mark.full
@pytest.mark.timeout(900)
def test_nothing_is_lost_when_processes_are_killed(tmp_path: Path) -> None:
    command = [sys.executable, str(_CHAOS), "--quick", "--directory", str(tmp_path / "chaos")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert (report["submissions"]["lost"], report["submissions"]["doubled"]) == (0, 0)
    assert report["submissions"]["acknowledged"] >= 5
    assert report["trials"]["broken"] == []
    assert sum(report["trials"]["kills"].values()) >= 3
