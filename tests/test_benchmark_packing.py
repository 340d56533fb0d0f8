"""Does `benchmarks/packing.py` run trials at once, and does what fails there fail alone?"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from our_trial import our_config, random_dataset, random_images
from packed_streams import Streams
from packs import under_mps

from care_sweep.learn.data import Dataset
from care_sweep.learn.packing import Order, PackError

_ROOT = Path(__file__).parents[1]


def _few() -> Dataset:
    return random_dataset(random_images(24, 32))


def _order(batch_size: int) -> Order:
    return Order(our_config("resnet_tiny", batch_size, "float32"), _few, "cpu")


@pytest.mark.skipif(shutil.which("nvidia-cuda-mps-control") is not None, reason="the service may be there")
def test_a_missing_multi_process_service_is_told() -> None:
    with pytest.raises(PackError, match="no Multi-Process Service"), under_mps():
        pass


def test_trials_in_turn_train_as_each_would_alone() -> None:
    together, alone = Streams(), Streams()
    together.prepare(_order(8), 2)
    assert min(*together.run(2, 0.0), *together.run(1, 0.0)) > 0
    alone.prepare(_order(8), 1)
    for _ in range(2):
        alone.run(1, 0.0)
    (first, second), (only,) = together._lanes, alone._lanes
    assert (first._trial.num_epochs_done, second._trial.num_epochs_done) == (3, 2)
    weights, others = only._trial.model.state_dict(), first._trial.model.state_dict()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    fewer = second._trial.model.state_dict()
    assert not all(torch.equal(weights[name], fewer[name]) for name in weights)


def test_in_turn_too_a_trial_that_cannot_be_built_is_told_and_the_next_order_is_not_lost() -> None:
    pack = Streams()
    pack.prepare(_order(32), 2)
    with pytest.raises(PackError, match="fewer than batch_size 32"):
        pack.run(1, 0.0)
    pack.prepare(_order(8), 1)
    assert pack.run(1, 0.0)[0] > 0
    with pytest.raises(PackError, match="of 2 trials 1 has been built"):
        pack.run(2, 0.0)


@pytest.mark.gpu
def test_graphs_replayed_on_streams_of_their_own_train_as_each_would_alone() -> None:
    order = Order(our_config("resnet_tiny", 8, "float32"), _few, "cuda")
    together, alone = Streams(), Streams()
    together.prepare(order, 4)
    alone.prepare(order, 1)
    for _ in range(3):
        together.run(4, 0.0)
        alone.run(1, 0.0)
    for lane in together._lanes:
        assert lane.losses == pytest.approx(alone._lanes[0].losses, rel=0.02)


@pytest.mark.slow
def test_packing_tells_images_a_second_together_against_one_after_another(tmp_path: Path) -> None:
    file = tmp_path / "packing.json"
    command = [sys.executable, str(_ROOT / "benchmarks" / "packing.py"), "--encoder", "resnet_tiny"]
    command += ["--device", "cpu", "--ways", "processes", "mps", "streams", "--batch-sizes", "8"]
    command += ["--trials", "1", "2", "--rounds", "2", "--images", "16", "--seconds", "0.2"]
    command += ["--json", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250, env=environment)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(file.read_text())
    packs = {pack["way"]: pack for pack in report["packs"]}
    for way in ("processes", "streams"):
        assert packs[way]["batch_size"] == 8
        for document in packs[way]["trials"].values():
            assert document["error"] is None
            assert len(document["turns"]) == 2
        assert f"| {way} | 8 | 1 | " in done.stdout
        assert f"| {way} | 8 | 2 | " in done.stdout
