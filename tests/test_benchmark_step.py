"""Does `benchmarks/step.py` measure what it says: the published step, the work of an image, fair turns?"""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ceilings import work_of_view
from host_and_device import is_launch
from our_trial import num_splits_for, random_images
from published_step import PlainModel, PublishedStep, contrast, equivariance, pil_views, shared_views
from side_by_side import Race, Turn, machine, quartiles, spread, table
from step_contenders import our_views
from torch import nn
from torch.nn.functional import normalize
from torchvision.transforms.functional import to_pil_image

from care_sweep.learn.objective import alignment, info_nce, orthogonal_equivariance, uniformity
from care_sweep.learn.precision import ieee_convolutions

_ROOT = Path(__file__).parents[1]
_SMALL = ["--device", "cpu", "--encoder", "resnet_tiny", "--batch-size", "16", "--steps", "2"]


def _embeddings(num_images: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    z1, z2 = (normalize(torch.randn(num_images, 8, generator=source)) for _ in range(2))
    return z1, z2


# --- the published step -------------------------------------------------------------------------------------


def test_the_published_contrast_is_info_nce_with_its_two_terms() -> None:
    z1, z2 = _embeddings()
    expected = [loss(z1, z2, 0.5) for loss in (info_nce, alignment, uniformity)]
    torch.testing.assert_close(list(contrast(z1, z2, 0.5)), expected)


def test_the_published_equivariance_is_ours_times_twice_the_pairs_of_an_image() -> None:
    z1, z2 = _embeddings()
    expected = orthogonal_equivariance(z1, z2, 3) * 2 * (12 // 3 - 1)
    torch.testing.assert_close(equivariance(z1, z2, 3), expected)


def test_one_augmentation_is_shared_by_the_whole_batch_and_another_is_the_second_view() -> None:
    image = random_images(1, 32) / 255
    torch.manual_seed(0)
    np.random.seed(0)
    first, second = shared_views(image.expand(8, -1, -1, -1), 4)
    assert first.shape == second.shape == (8, 3, 32, 32)
    for views in (first, second):
        torch.testing.assert_close(views, views[:1].expand_as(views))
    assert not torch.allclose(first, second)


def test_views_of_pil_images_are_drawn_one_by_one() -> None:
    view, image = pil_views(32), to_pil_image(random_images(1, 32)[0])
    first, second = view(image), view(image)
    assert first.shape == (3, 32, 32)
    assert not torch.allclose(first, second)


def test_a_published_step_trains_every_weight_and_tells_finite_numbers() -> None:
    torch.manual_seed(0)
    step = PublishedStep(
        "resnet_tiny",
        random_images(16, 32),
        batch_size=8,
        num_splits=4,
        device=torch.device("cpu"),
        num_workers=0,
    )
    before = [parameter.clone() for parameter in step.model.parameters()]
    told = step.take(next(iter(step.loader)))
    assert len(told) == 5
    assert all(map(math.isfinite, told))
    assert told[0] == pytest.approx(told[1] + 0.03 * told[2])
    assert all(not torch.equal(old, new) for old, new in zip(before, step.model.parameters(), strict=True))
    assert step.shared_views_seconds > 0
    assert not torch.backends.cudnn.deterministic


# --- ours ---------------------------------------------------------------------------------------------------


def test_our_views_are_two_of_each_image_and_two_of_each_split() -> None:
    image = random_images(1, 32)
    own, _, shared, other = our_views(image.expand(8, -1, -1, -1)).chunk(4)
    assert num_splits_for(8) == 4
    for views in (shared, other):
        torch.testing.assert_close(views[::2], views[1::2])
    assert not torch.allclose(own[::2], own[1::2])
    assert not torch.allclose(shared, other)


@pytest.mark.parametrize(
    ("batch_size", "num_splits"), [(256, 16), (64, 16), (32, 16), (16, 8), (6, 3), (2, 1)]
)
def test_the_splits_of_a_small_batch_divide_it(batch_size: int, num_splits: int) -> None:
    assert num_splits_for(batch_size) == num_splits


# --- what an image asks for ---------------------------------------------------------------------------------


def test_an_image_of_resnet18_is_13_gflop() -> None:
    flops = 4 * work_of_view(PlainModel("resnet18"), (32, 32)).flops
    assert flops == pytest.approx(4 * 3 * 2 * 0.556e9, rel=0.002)


def test_work_is_counted_layer_by_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5))
    work = work_of_view(model, (4, 4))
    assert work.flops == 3 * 2 * (3 * 3 * 3) * (5 * 4 * 4)
    assert work.values == 3 * (3 * 16 + 5 * 16) + 8 * 5 * 16
    assert model.training
    assert not model[0]._forward_hooks


@pytest.mark.parametrize(
    ("name", "launches"),
    [
        ("cudaLaunchKernel", True),
        ("cudaLaunchKernelExC", True),
        ("cuLaunchKernelEx", True),
        ("cudaGraphLaunch", True),
        ("cudaMemcpyAsync", False),
        ("cudaStreamSynchronize", False),
        ("Memset (Device)", False),
    ],
)
def test_what_starts_a_kernel_is_known_by_name(name: str, launches: bool) -> None:
    assert is_launch(name) is launches


# --- turns --------------------------------------------------------------------------------------------------


class _Noted:
    """A contender that notes its turns, and fails in one of them."""

    def __init__(self, name: str, notes: list[str], seconds: float = 1.0, fails_in: int = 99) -> None:
        self._name, self._notes, self._seconds, self._fails_in = name, notes, seconds, fails_in

    def turn(self) -> Turn:
        self._notes.append(self._name)
        if self._notes.count(self._name) == self._fails_in:
            raise MemoryError("no more")
        return Turn(10.0, self._seconds)


def test_contenders_take_turns() -> None:
    notes: list[str] = []
    race = Race({name: lambda name=name: _Noted(name, notes) for name in "AB"}, 60.0)
    for _ in range(3):
        race.round()
    assert "".join(notes) == "ABABAB"
    assert race.outcomes["A"].rates == [10.0] * 3


def test_one_that_fails_fails_alone_and_keeps_its_turns() -> None:
    notes: list[str] = []

    def broken() -> _Noted:
        raise ValueError("cannot be built")

    builders = {"A": lambda: _Noted("A", notes, fails_in=2), "B": lambda: _Noted("B", notes), "C": broken}
    race = Race(builders, 60.0)
    for _ in range(3):
        race.round()
    assert "".join(notes) == "ABABB"
    assert [len(race.outcomes[name].turns) for name in "ABC"] == [1, 3, 0]
    assert "MemoryError: no more" in str(race.outcomes["A"].error)
    assert "cannot be built" in str(race.outcomes["C"].error)
    assert race.outcomes["B"].error is None
    assert json.dumps(race.outcomes["C"].document(), allow_nan=False)


def test_who_has_used_up_the_seconds_takes_no_further_turn_but_takes_one() -> None:
    notes: list[str] = []

    def slow() -> _Noted:
        time.sleep(0.05)
        return _Noted("A", notes)

    race = Race({"A": slow, "B": lambda: _Noted("B", notes, seconds=0.004)}, 0.01)
    for _ in range(4):
        race.round()
    assert "".join(notes) == "ABBB"


def test_a_figure_tells_what_float32_was() -> None:
    assert machine(torch.device("cpu"))["float32_convolutions"] == "tf32"
    with ieee_convolutions():
        assert machine(torch.device("cpu"))["float32_convolutions"] == "ieee"


def test_quartiles_are_over_the_turns() -> None:
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)
    assert quartiles([float(n) for n in range(20)]) == (4.75, 9.5, 14.25)


def test_quartiles_of_what_never_ends() -> None:
    assert quartiles([math.inf, 1.0, 2.0]) == (1.5, 2.0, math.inf)
    assert quartiles([1.0, math.inf, 3.0, 2.0, math.inf]) == (2.0, 3.0, math.inf)
    assert quartiles([math.inf]) == (math.inf, math.inf, math.inf)


def test_tables_are_markdown() -> None:
    rate = {"lower_quartile": 1.0, "median": 2.0, "upper_quartile": 3.0}
    assert spread(None) == "-"
    assert table([{"a": "b", "rate": spread(rate)}]) == "| a | rate |\n| --- | --- |\n| b | 2 (1 to 3) |"


# --- the whole ----------------------------------------------------------------------------------------------


def _benchmark(*arguments: str) -> str:
    command = [sys.executable, str(_ROOT / "benchmarks" / "step.py"), *_SMALL, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_step_prints_a_row_for_each_contender_and_keeps_all_in_json(tmp_path: Path) -> None:
    file = tmp_path / "step.json"
    chosen = ["published", "cheap", "ours-float32"]
    arguments = ["--contenders", *chosen, "--rounds", "2", "--workers", "1", "--json", str(file)]
    printed = _benchmark(*arguments)
    report: dict[str, Any] = json.loads(file.read_text())
    assert list(report["contenders"]) == chosen
    for name, document in report["contenders"].items():
        assert document["error"] is None
        assert [turn["amount"] for turn in document["turns"]] == [32.0] * 2
        assert document["views_a_second"] == 4 * document["rate"]["median"] > 0
        assert document["augmentation_share"] > 0
        assert document["share_of_matrix_product"] > 0
        assert document["share_of_memory_copy"] > 0
        assert f"| {name} | " in printed
    assert report["contenders"]["published"]["against_published"] == 1
    assert "launches_a_step" not in report["contenders"]["cheap"]  # a CPU launches nothing
    assert report["machine"]["torch"] == torch.__version__
