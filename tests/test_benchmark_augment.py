"""Does `benchmarks/augment.py` compare three ways of making views?"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_augment_tells_views_a_second_of_each_way_against_pil(tmp_path: Path) -> None:
    file = tmp_path / "augment.json"
    command = [sys.executable, str(_ROOT / "benchmarks" / "augment.py"), "--batch-size", "8", "--rounds", "2"]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    done = subprocess.run(
        [*command, "--json", str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert list(report["contenders"]) == ["ours", "pil", "batched"]
    for document in report["contenders"].values():
        assert document["error"] is None
        assert len(document["turns"]) == 2
    assert report["machine"]["num_threads"] == 1
    (pil,) = (line for line in done.stdout.splitlines() if line.startswith("| pil |"))
    assert pil.endswith("| 1.0x |")
