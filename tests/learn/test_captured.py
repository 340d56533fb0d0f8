"""Does a step that never asks the host train as one that does? Dense views, flags read late, graphs."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from care_sweep.errors import TrialDiverged
from care_sweep.learn import bases
from care_sweep.learn.data import Dataset, Split
from care_sweep.learn.dense_views import PackedViews, apply_densely
from care_sweep.learn.state import written_beside
from care_sweep.learn.train import _Trial
from care_sweep.learn.views import apply_views, draw_shared_views, draw_views
from care_sweep.spec import TrialConfig

CPU = torch.device("cpu")
GPU = torch.device("cuda")
WAYS: dict[str, dict[str, Any]] = {
    "CARE": {},
    "SimCLR": {"equivariance_weight": 0.0},
    "a batch shares": {"augmentation_scope": "batch", "batch_norm": "joint"},
    "alignment": {"objective": "alignment"},
    "uniformity": {"objective": "uniformity"},
    "L_equi alone": {"objective": "none"},
    "MoCo": {"base": "moco", "queue_size": 50},
    "Barlow Twins": {"base": "barlow_twins"},
    "SGD": {"optimizer": "sgd", "learning_rate": 0.01},
}


def changed(config: TrialConfig, **changes: Any) -> TrialConfig:
    return TrialConfig.model_validate({**config.model_dump(), **changes})


def first_epoch(config: TrialConfig, data: Dataset, device: torch.device, compiled: str) -> list[float]:
    return list(_Trial(changed(config, compile=compiled), data, device).train_epoch().values())


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """The steps that ask nothing of the host, as plain torch: what they do, without what a compiler adds."""
    with torch.compiler.set_stance("force_eager"):
        yield


# --- views --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_views_made_densely_are_the_views(size: tuple[int, int], strength: float) -> None:
    source = torch.Generator().manual_seed(1)
    groups = [draw_views(90, size, strength, source), draw_shared_views(90, 9, size, strength, source)]
    images = torch.randint(0, 256, (90, 3, *size), dtype=torch.uint8, generator=source)
    images[:10] = images[:10, :1]  # gray ones have no hue
    rows = torch.randperm(90, generator=source)[:60]
    dense = apply_densely(images[rows].repeat(2, 1, 1, 1), PackedViews.of(groups).rows(rows))
    expected = torch.cat([apply_views(images[rows], group[rows]) for group in groups])
    assert torch.allclose(dense, expected, atol=1e-6)


# --- steps, on a CPU ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("change", WAYS.values(), ids=WAYS.keys())
def test_steps_that_ask_nothing_train_as_the_others(
    config: TrialConfig, tiny: Dataset, change: dict[str, Any]
) -> None:
    config = changed(config, **change)
    losses = first_epoch(config, tiny, CPU, "always")
    expected = first_epoch(config, tiny, CPU, "never")
    assert losses == pytest.approx(expected, rel=1e-5, abs=5e-6)  # L_equi alone is near 0, its terms are not


@pytest.mark.usefixtures("uncompiled")
def test_a_step_that_diverges_is_named_and_moves_no_weight(
    config: TrialConfig, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def second_is_bad(z1: torch.Tensor, *_: object) -> torch.Tensor:
        taken.append(1)
        return z1.sum() * (float("nan") if len(taken) == 2 else 0.0)

    monkeypatch.setattr(bases, "info_nce", second_is_bad)
    config = changed(config, compile="always", equivariance_weight=0.0, weight_decay=0.1)
    trial, until_then = _Trial(config, tiny, CPU), _Trial(config, tiny, CPU)
    with pytest.raises(TrialDiverged, match=r"epoch 1, step 2 of 3: loss nan, info_nce nan, equivariance 0"):
        trial.train_epoch()
    taken.clear()
    draws = until_then._draws(1)
    until_then._drawn = 1, dataclasses.replace(draws, rates=draws.rates[:1])
    until_then.train_epoch()
    for name, weight in trial.model.named_parameters():
        assert torch.equal(weight, dict(until_then.model.named_parameters())[name]), name


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_trials_of_one_sweep_share_what_is_compiled(config: TrialConfig, tiny: Dataset) -> None:
    """Other weights, temperatures, strengths, learning rates and seeds compile nothing."""
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    losses = first_epoch(config, tiny, CPU, "always")
    assert losses == pytest.approx(first_epoch(config, tiny, CPU, "never"), rel=1e-4)
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled == before + 2  # views and losses
    other = {"equivariance_weight": 2.0, "temperature": 0.1, "augmentation_strength": 0.4}
    config = changed(config, **other, learning_rate=0.002, seed=7)
    losses = first_epoch(config, tiny, CPU, "always")
    assert losses == pytest.approx(first_epoch(config, tiny, CPU, "never"), rel=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled


# --- steps, on a GPU ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def more(mini: Dataset) -> Dataset:
    """Ten steps of 32."""
    return dataclasses.replace(mini, train=Split(mini.train.images[:320], mini.train.labels[:320]))


@pytest.mark.gpu
@pytest.mark.parametrize("change", WAYS.values(), ids=WAYS.keys())
def test_a_graph_trains_as_the_steps_of_the_host(
    config: TrialConfig, more: Dataset, change: dict[str, Any]
) -> None:
    """To 2 % over ten steps: what rounding alone makes of ten steps of Adam is of that size."""
    config = changed(config, **change, precision="float32")
    losses = first_epoch(config, more, GPU, "always")
    assert losses == pytest.approx(first_epoch(config, more, GPU, "never"), rel=0.02)


@pytest.mark.gpu
def test_the_host_is_not_asked_within_an_epoch(config: TrialConfig, more: Dataset) -> None:
    trial = _Trial(config, more, GPU)
    trial.train_epoch()
    draws = trial._draws(2)
    assert trial._captured is not None
    torch.cuda.set_sync_debug_mode("error")
    try:
        trial._captured.begin_epoch(draws)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_graph_goes_on_from_a_state(config: TrialConfig, more: Dataset, tmp_path: Path) -> None:
    whole = _Trial(config, more, GPU)
    first = whole.train_epoch()
    with written_beside(tmp_path / "state", whole.state(first), GPU):
        pass
    second = whole.train_epoch()
    resumed = _Trial(config, more, GPU)
    assert resumed.restore(tmp_path / "state") == first
    assert list(resumed.train_epoch().values()) == pytest.approx(list(second.values()), rel=0.02)


@pytest.mark.gpu
def test_a_graph_that_diverges_is_named(config: TrialConfig, more: Dataset) -> None:
    wild = changed(config, optimizer="sgd", learning_rate=100.0, equivariance_weight=1e6, weight_decay=10.0)
    trial = _Trial(changed(wild, epochs=40, schedule="constant", warmup_epochs=0), more, GPU)
    with pytest.raises(TrialDiverged, match=r"epoch \d+, step \d+ of 10: loss"):
        for _ in range(40):
            trial.train_epoch()
    assert all(weight.isfinite().all() for weight in trial.model.parameters())
