"""Does `benchmarks/packing.py` run trials at once, and does what fails there fail alone?"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packed_processes import Order, PackError, Processes, under_mps

_ROOT = Path(__file__).parents[1]
_ORDER = Order("resnet_tiny", batch_size=8, num_images=16, device="cpu", precision="float32")


@pytest.mark.slow
def test_trials_run_at_once_and_a_failed_one_leaves_its_pack_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{_ROOT}:{_ROOT / 'benchmarks'}")
    with Processes(2) as pack:
        pack.prepare(Order("resnet_tiny", batch_size=32, num_images=16, device="cpu", precision="float32"))
        with pytest.raises(PackError, match="fewer than batch_size 32"):
            pack.run(1, 0.1)
        pack.prepare(_ORDER)
        rates = pack.run(2, 0.2)
        assert len(rates) == 2
        assert min(rates) > 0
        assert len(pack.run(1, 0.1)) == 1
        pack._processes[1].kill()
        pack._processes[1].join()
        with pytest.raises(PackError, match="its process has died"):
            pack.run(2, 0.1)
        assert len(pack.run(1, 0.1)) == 1


@pytest.mark.skipif(shutil.which("nvidia-cuda-mps-control") is not None, reason="the service may be there")
def test_a_missing_multi_process_service_is_told() -> None:
    with pytest.raises(PackError, match="no Multi-Process Service"), under_mps(1):
        pass


@pytest.mark.slow
def test_packing_tells_images_a_second_together_against_one_after_another(tmp_path: Path) -> None:
    file = tmp_path / "packing.json"
    command = [sys.executable, str(_ROOT / "benchmarks" / "packing.py"), "--encoder", "resnet_tiny"]
    command += ["--device", "cpu", "--ways", "processes", "mps", "--batch-sizes", "8", "--trials", "1", "2"]
    command += ["--rounds", "2", "--images", "16", "--seconds", "0.2", "--json", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250, env=environment)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(file.read_text())
    processes = report["packs"][0]
    assert (processes["way"], processes["batch_size"]) == ("processes", 8)
    for document in processes["trials"].values():
        assert document["error"] is None
        assert len(document["turns"]) == 2
    assert "| processes | 8 | 1 | " in done.stdout
    assert "| processes | 8 | 2 | " in done.stdout
