"""Each base trains, resumes to the bit and pays for what it uses; what MoCo holds and when it moves."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from care_sweep.errors import TrialCollapsed
from care_sweep.learn import train as train_module
from care_sweep.learn.bases import MoCo, NoContrast, build_base
from care_sweep.learn.checkpoint import load
from care_sweep.learn.data import Dataset, Split
from care_sweep.learn.encoder import CareModel, build_model
from care_sweep.learn.objective import queue_info_nce
from care_sweep.learn.randomness import generator
from care_sweep.learn.state import opened, sealed
from care_sweep.learn.train import train
from care_sweep.learn.views import ViewParameters, apply_views, draw_views, normalise
from care_sweep.spec import Measurement, TrialConfig

CPU = torch.device("cpu")
SHORT_QUEUE: dict[str, Any] = {"base": "moco", "queue_size": 80}  # no multiple of the batch of 32

WAYS: dict[str, tuple[dict[str, Any], str | None, int]] = {
    "SimCLR": ({"equivariance_weight": 0.0}, "info_nce", 2),
    "CARE": ({}, "info_nce", 4),
    "alignment": ({"objective": "alignment", "equivariance_weight": 0.0}, "alignment", 2),
    "alignment and L_equi": ({"objective": "alignment"}, "alignment", 4),
    "uniformity": ({"objective": "uniformity", "equivariance_weight": 0.0}, "uniformity", 2),
    "uniformity and L_equi": ({"objective": "uniformity"}, "uniformity", 4),
    "L_equi alone": ({"objective": "none"}, None, 2),
    "MoCo": ({**SHORT_QUEUE, "equivariance_weight": 0.0}, "info_nce", 2),
    "MoCo and L_equi": (SHORT_QUEUE, "info_nce", 4),
    "Barlow Twins": ({"base": "barlow_twins", "equivariance_weight": 0.0}, "barlow_twins", 2),
    "Barlow Twins and L_equi": ({"base": "barlow_twins"}, "barlow_twins", 4),
    "one augmentation a batch": ({"augmentation_scope": "batch"}, "info_nce", 4),
    "joint batch norm": ({"batch_norm": "joint"}, "info_nce", 4),
    "MoCo, joint batch norm": ({**SHORT_QUEUE, "batch_norm": "joint"}, "info_nce", 4),
}
EACH_WAY = pytest.mark.parametrize(("change", "contrast", "num_views"), WAYS.values(), ids=WAYS.keys())


def changed(config: TrialConfig, change: Mapping[str, Any]) -> TrialConfig:
    return TrialConfig.model_validate({**config.model_dump(), **change})


def run(
    config: TrialConfig,
    data: Dataset,
    directory: Path,
    *,
    resume_from: Path | None = None,
    stop_after: int = 0,
) -> list[Measurement]:
    reported: list[Measurement] = []

    def report(measurement: Measurement) -> None:
        reported.append(measurement)
        if measurement.epoch == stop_after:
            raise SystemExit(0)

    train(config, data, report, directory=directory, device=CPU, resume_from=resume_from)
    return reported


@EACH_WAY
def test_each_way_trains_and_embeds_only_what_it_needs(
    config: TrialConfig,
    tiny: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    contrast: str | None,
    num_views: int,
) -> None:
    made = []

    def counted(images: Tensor, parameters: ViewParameters) -> Tensor:
        made.append(len(images))
        return apply_views(images, parameters)

    monkeypatch.setattr(train_module, "apply_views", counted)
    config = changed(config, {**change, "epochs": 1})
    metrics = run(config, tiny, tmp_path)[0].metrics
    losses = {name for name in metrics if name.startswith("train_")}
    assert losses == {"train_loss", "train_equivariance"} | ({f"train_{contrast}"} if contrast else set())
    assert made == [32] * num_views * 3
    own = metrics[f"train_{contrast}"] if contrast else 0.0
    expected = own + config.equivariance_weight * metrics["train_equivariance"]
    assert metrics["train_loss"] == pytest.approx(expected, rel=1e-5)
    assert (metrics["train_equivariance"] > 0) == (config.equivariance_weight > 0)
    if config.equivariance_weight == 0:
        assert metrics["train_loss"] == own


@EACH_WAY
def test_each_way_resumes_to_the_bit(
    config: TrialConfig,
    tiny: Dataset,
    tmp_path: Path,
    change: dict[str, Any],
    contrast: str | None,
    num_views: int,
) -> None:
    config = changed(config, {**change, "epochs": 2})
    whole = run(config, tiny, tmp_path / "whole")
    with pytest.raises(SystemExit):
        run(config, tiny, tmp_path / "part", stop_after=1)
    rest = run(config, tiny, tmp_path / "rest", resume_from=tmp_path / "part" / "state-00001.pt")
    assert rest[-1].metrics == whole[-1].metrics
    assert rest[-1].checkpoint == whole[-1].checkpoint
    ends = [opened(tmp_path / way / "state-00002.pt", CPU) for way in ("whole", "rest")]
    assert ends[0]["base"].keys() == ends[1]["base"].keys()
    assert all(torch.equal(value, ends[1]["base"][name]) for name, value in ends[0]["base"].items())


# --- MoCo ---------------------------------------------------------------------------------------------------


def moco(config: TrialConfig, model: CareModel, queue_size: int = 80) -> MoCo:
    base = build_base(changed(config, {"base": "moco", "queue_size": queue_size}), model)
    assert isinstance(base, MoCo)
    return base


def pixels(seed: int, num_images: int = 32) -> Tensor:
    return torch.randn(num_images, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_the_key_encoder_starts_as_the_model_and_follows_it_slowly(config: TrialConfig) -> None:
    model = build_model("resnet_tiny", 0)
    base = moco(config, model)
    assert not any(p.requires_grad for p in base.parameters())
    before = {name: value.clone() for name, value in base.key_model.named_parameters()}
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    base([model.project(pixels(0))], pixels(1))
    base.follow(model)
    for name, value in base.key_model.named_parameters():
        assert torch.allclose(value, 0.99 * before[name] + 0.01 * (before[name] + 1), atol=1e-6), name


def test_the_queue_is_a_ring_and_the_oldest_keys_leave_first(config: TrialConfig) -> None:
    model = build_model("resnet_tiny", 0)
    base = moco(config, model)
    ring, oldest = base.queue.clone(), 0
    assert torch.allclose(ring.norm(dim=1), torch.ones(80))
    for step in range(6):
        query = model.project(pixels(100 + step))
        base(query.chunk(1), pixels(step))
        keys = base._keys_BD
        assert keys is not None
        assert torch.equal(base.queue, ring), "keys enter after the loss"
        base.follow(model)
        for key in keys:
            ring[oldest] = key
            oldest = (oldest + 1) % 80
        assert torch.equal(base.queue, ring)
        assert int(base.oldest) == oldest


def test_keys_carry_no_gradient_and_have_batch_statistics_of_their_own(config: TrialConfig) -> None:
    model = build_model("resnet_tiny", 0).train()
    base = moco(config, model)
    loss = base([model.project(pixels(0))], 3 * pixels(1))
    loss.backward()
    assert all(p.grad is None for p in base.parameters())
    assert all(p.grad is not None for p in model.parameters())
    ours, keys = model.state_dict(), base.key_model.state_dict()
    assert ours["projector.1.num_batches_tracked"] == keys["projector.1.num_batches_tracked"] == 1
    assert not torch.equal(ours["projector.1.running_mean"], keys["projector.1.running_mean"])


def moco_written_out(config: TrialConfig, data: Dataset) -> tuple[list[float], dict[str, Tensor]]:
    """He et al., Algorithm 1, with the update of the key encoder where they have it, at a step's begin."""
    model, key_model = (build_model(config.encoder, config.seed).train() for _ in range(2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-6, fused=True)
    queue = normalize(torch.randn(config.queue_size, 128, generator=generator(config.seed, "queue")))
    losses = []
    for epoch in range(1, config.epochs + 1):
        order = torch.randperm(100, generator=generator(config.seed, "permutation", epoch))
        source = generator(config.seed, "views", epoch)
        first, second = (draw_views(96, (32, 32), config.augmentation_strength, source) for _ in range(2))
        total = 0.0
        for start in (0, 32, 64):
            rows = slice(start, start + 32)
            images = data.train.images[order[rows]]
            with torch.no_grad():
                for key, query in zip(key_model.parameters(), model.parameters(), strict=True):
                    key.copy_(config.key_encoder_momentum * key + (1 - config.key_encoder_momentum) * query)
                keys = key_model(normalise(apply_views(images, second[rows]), data.mean, data.std))
            queries = model(normalise(apply_views(images, first[rows]), data.mean, data.std))
            loss = queue_info_nce(queries, keys, queue, config.temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            queue = torch.cat([queue[32:], keys])
            total += loss.item()
        losses.append(total / 3)
    return losses, model.state_dict()


def test_a_moco_trial_is_moco_written_out_and_gives_its_query_encoder(
    config: TrialConfig, tiny: Dataset, tmp_path: Path
) -> None:
    config = changed(
        config, {**SHORT_QUEUE, "equivariance_weight": 0.0, "schedule": "constant", "warmup_epochs": 0}
    )
    measurements = run(config, tiny, tmp_path)
    losses, weights = moco_written_out(config, tiny)
    assert [m.metrics["train_info_nce"] for m in measurements] == pytest.approx(losses, rel=1e-4)
    given = load(tmp_path / "checkpoint.tar").model.state_dict()
    state = opened(tmp_path / "state-00003.pt", CPU)
    assert all(torch.equal(given[name], state["model"][name]) for name in given)
    name = "encoder.stem.0.weight"
    assert torch.allclose(given[name], weights[name], atol=1e-3)
    assert not torch.equal(given[name], state["base"][f"key_model.{name}"])


# --- options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scope", "num_sharing"), [("split", 8), ("batch", 32)])
def test_who_shares_an_augmentation(config: TrialConfig, tiny: Dataset, scope: str, num_sharing: int) -> None:
    trial = train_module._Trial(changed(config, {"augmentation_scope": scope}), tiny, CPU)
    groups = trial._draw_views(1)
    assert [len(group) for group in groups] == [96] * 4
    for group in groups[2:]:
        for shared in group.factors.split(num_sharing):
            assert (shared == shared[0]).all()
        assert len(group.factors.unique(dim=0)) == 96 // num_sharing
    assert len(groups[0].factors.unique(dim=0)) == 96
    for ours, simclr in zip(groups[:2], _without_weight(trial)._draw_views(1), strict=True):
        assert torch.equal(ours.factors, simclr.factors)


def _without_weight(trial: train_module._Trial) -> train_module._Trial:
    return train_module._Trial(changed(trial.config, {"equivariance_weight": 0.0}), trial.data, CPU)


@pytest.mark.parametrize(("batch_norm", "num_batches"), [("per_view", 4), ("joint", 1)])
def test_batch_statistics_of_each_view_group_or_of_all(
    config: TrialConfig, tiny: Dataset, batch_norm: str, num_batches: int
) -> None:
    trial = train_module._Trial(changed(config, {"batch_norm": batch_norm}), tiny, CPU)
    trial.train_epoch()
    assert trial.model.state_dict()["projector.1.num_batches_tracked"] == 3 * num_batches


def test_without_a_contrastive_part_nothing_is_embedded_for_it(config: TrialConfig) -> None:
    base = build_base(changed(config, {"objective": "none"}), build_model("resnet_tiny", 0))
    assert isinstance(base, NoContrast)
    assert (base.num_embedded, base.num_held, base.state_dict()) == (0, 0, {})


def test_a_state_whose_configuration_lacks_later_fields_goes_on(
    config: TrialConfig, tiny: Dataset, tmp_path: Path
) -> None:
    whole = run(config, tiny, tmp_path / "whole")
    with pytest.raises(SystemExit):
        run(config, tiny, tmp_path / "part", stop_after=2)
    path = tmp_path / "part" / "state-00002.pt"
    state = opened(path, CPU)
    known = json.loads(state["config"])
    for name in ("base", "objective", "augmentation_scope", "batch_norm", "queue_size"):
        del known[name]
    path.write_bytes(sealed(state | {"config": json.dumps(known)}))
    rest = run(config, tiny, tmp_path / "rest", resume_from=path)
    assert [m.metrics for m in rest] == [whole[-1].metrics]


# --- collapse -----------------------------------------------------------------------------------------------


def test_collapse_is_judged_once_training_has_settled(
    config: TrialConfig, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        train_module, "embedding_metrics", lambda *_: {"effective_rank": 9.0, "embedding_spread": 0.1}
    )
    run(config, tiny, tmp_path / "too short to tell")
    monkeypatch.setattr(train_module, "_STEPS_TO_SETTLE", 6)
    with pytest.raises(TrialCollapsed, match=r"after epoch 2: .*embedding_spread 0.1 is below 0.2") as caught:
        run(config, tiny, tmp_path / "judged")
    assert caught.value.epoch == 2
    assert {"train_loss", "validation_knn_accuracy"} < set(caught.value.metrics)
    assert caught.value.seconds > 0
    assert not (tmp_path / "judged" / "checkpoint.tar").exists()
    warming = changed(config, {"warmup_epochs": 2})
    with pytest.raises(TrialCollapsed, match="after epoch 3"):
        run(warming, tiny, tmp_path / "warming")


def test_a_short_trial_is_judged_after_its_last_epoch(
    config: TrialConfig, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine steps: alignment alone has brought all images together, which no later epoch could tell."""
    hasty = {"objective": "alignment", "equivariance_weight": 0.0, "learning_rate": 0.005, "warmup_epochs": 0}
    with pytest.raises(TrialCollapsed, match=r"after epoch 3: .*embedding_spread") as caught:
        run(changed(config, hasty), tiny, tmp_path / "collapsed")
    assert caught.value.epoch == 3
    assert not (tmp_path / "collapsed" / "checkpoint.tar").exists()
    warming = changed(config, {**hasty, "warmup_epochs": 3, "learning_rate": 0.02})
    assert len(run(warming, tiny, tmp_path / "still in warm-up")) == 3
    stale = {"effective_rank": 1.0, "embedding_spread": 0.0, "uniformity": 0.0}
    monkeypatch.setattr(train_module, "embedding_metrics", lambda *_: stale)
    assert len(run(config, tiny, tmp_path / "sound by its batches")) == 3


@pytest.mark.slow
def test_l_equi_alone_is_caught_and_what_has_uniformity_is_not(mini: Dataset, tmp_path: Path) -> None:
    common = {
        "encoder": "resnet_tiny",
        "epochs": 4,
        "batch_size": 128,
        "num_splits": 8,
        "temperature": 0.2,
        "learning_rate": 0.002,
        "schedule": "cosine",
        "knn_neighbors": 50,
        "probe_epochs": 1,
    }
    few = dataclasses.replace(mini, test=Split(mini.test.images[:0], mini.test.labels[:0]))
    alone = TrialConfig(**common, objective="none")
    with pytest.raises(TrialCollapsed, match=r"after epoch 4: .*embedding_spread"):
        run(alone, few, tmp_path / "alone")
    for name, change in {
        "SimCLR": {"equivariance_weight": 0.0},
        "CARE": {},
        "uniformity": {"objective": "uniformity", "equivariance_weight": 0.0},
    }.items():
        measurements = run(TrialConfig(**common, **change), few, tmp_path / name)
        assert measurements[-1].metrics["embedding_spread"] > 0.5
