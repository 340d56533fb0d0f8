"""A trial: the same trace twice, interrupted like uninterrupted, SimCLR at weight 0, and every way to end."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from training import CPU, run, stop_after, trace

from care_sweep.errors import DatasetError, TrialDiverged
from care_sweep.learn import bases
from care_sweep.learn import train as train_module
from care_sweep.learn.checkpoint import load
from care_sweep.learn.data import Dataset, Split
from care_sweep.learn.encoder import build_model
from care_sweep.learn.objective import info_nce
from care_sweep.learn.randomness import generator
from care_sweep.learn.state import opened
from care_sweep.learn.train import _build_optimizer, measured_epochs, untrained
from care_sweep.learn.views import apply_views, draw_views, normalise
from care_sweep.spec import Measurement, TrialConfig

EVERY_EPOCH = {
    "train_loss",
    "train_info_nce",
    "train_equivariance",
    "uniformity",
    "effective_rank",
    "embedding_spread",
    "validation_knn_accuracy",
    "num_validation_images",
}
LAST_EPOCH = EVERY_EPOCH | {
    *("validation_probe_accuracy", "validation_probe_accuracy_mean", "validation_probe_accuracy_spread"),
    *("relative_equivariance", "wahba_error", "wahba_error_rms", "alignment"),
    *("angle_variance", "angle_variance_over_images", "neighbor_change", "hue_following"),
}


def test_measurements_are_complete_and_durable(config: TrialConfig, tiny: Dataset, tmp_path: Path) -> None:
    def check(measurement: Measurement) -> None:
        assert (tmp_path / f"state-{measurement.epoch:05d}.pt").is_file()
        assert (measurement.checkpoint is not None) == (measurement.epoch == config.epochs)

    measurements = run(config, tiny, tmp_path, then=check)
    assert [m.epoch for m in measurements] == [1, 2, 3]
    assert [set(m.metrics) for m in measurements] == [EVERY_EPOCH, EVERY_EPOCH, LAST_EPOCH]
    assert all(m.seconds > 0 for m in measurements)
    num_steps = len(tiny.train.labels) // config.batch_size
    assert [m.num_images for m in measurements] == [num_steps * config.batch_size] * 3
    reference = measurements[-1].checkpoint
    assert reference is not None
    assert reference.size_bytes == (tmp_path / reference.name).stat().st_size
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint.tar",
        "state-00002.pt",
        "state-00003.pt",
    ]
    for m in measurements:
        parts = m.metrics["train_info_nce"] + config.equivariance_weight * m.metrics["train_equivariance"]
        assert m.metrics["train_loss"] == pytest.approx(parts, rel=1e-5)
        assert m.metrics["train_equivariance"] > 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_measured_epochs_are_those_that_a_trial_reports(
    config: TrialConfig, tiny: Dataset, tmp_path: Path, precision: str
) -> None:
    """The last one too, which is measured in float32, but for what no other epoch has."""
    config = config.model_copy(update={"precision": precision})
    reported = trace(run(config, tiny, tmp_path))
    common = [{name: epoch[name] for name in EVERY_EPOCH} for epoch in reported]
    assert list(measured_epochs(config, tiny, device=CPU)) == common


def test_the_checkpoint_is_the_trained_encoder(config: TrialConfig, tiny: Dataset, tmp_path: Path) -> None:
    measurements = run(config, tiny, tmp_path)
    encoder = load(tmp_path / "checkpoint.tar")
    state = opened(tmp_path / "state-00003.pt", CPU)
    for name, value in encoder.model.state_dict().items():
        assert torch.equal(value, state["model"][name])
    assert encoder.metrics == measurements[-1].metrics
    right = encoder.classify(tiny.validation.images) == tiny.validation.labels
    assert right.double().mean().item() == encoder.metrics["validation_probe_accuracy"]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_interrupted_and_resumed_is_uninterrupted_to_the_bit(
    config: TrialConfig, tiny: Dataset, tmp_path: Path, optimizer: str, epoch: int
) -> None:
    config = config.model_copy(update={"optimizer": optimizer})
    whole = run(config, tiny, tmp_path / "whole")
    with pytest.raises(SystemExit):
        run(config, tiny, tmp_path / "part", then=stop_after(epoch))
    torch.rand(3)  # whatever else the process draws does not matter
    state = tmp_path / "part" / f"state-{epoch:05d}.pt"
    rest = run(config, tiny, tmp_path / "rest", resume_from=state)
    assert trace(rest) == trace(whole)[min(epoch, 2) :]
    assert rest[-1].checkpoint == whole[-1].checkpoint
    assert rest[0].epoch == min(epoch + 1, 3)  # a state of the last epoch is reported again


def test_the_same_seed_gives_the_same_trace(config: TrialConfig, tiny: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = run(config, tiny, tmp_path / "first")
    torch.manual_seed(2)
    assert trace(run(config, tiny, tmp_path / "again")) == trace(first)
    other = config.model_copy(update={"seed": 1})
    assert trace(run(other, tiny, tmp_path / "other"))[0]["train_loss"] != trace(first)[0]["train_loss"]


def simclr(config: TrialConfig, data: Dataset) -> tuple[list[float], dict[str, Tensor]]:
    """SimCLR written out: each epoch's mean loss, and the trained weights."""
    model = build_model(config.encoder, config.seed).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-6, fused=True)
    losses = []
    for epoch in range(1, config.epochs + 1):
        order = torch.randperm(100, generator=generator(config.seed, "permutation", epoch))
        source = generator(config.seed, "views", epoch)
        first, second = (draw_views(96, (32, 32), config.augmentation_strength, source) for _ in range(2))
        total = torch.zeros(())
        for start in (0, 32, 64):
            rows = slice(start, start + 32)
            images = data.train.images[order[rows]]
            views = torch.cat([apply_views(images, first[rows]), apply_views(images, second[rows])])
            z1, z2 = model(normalise(views, data.mean, data.std), 2).chunk(2)
            loss = info_nce(z1, z2, config.temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        losses.append((total / 3).item())
    return losses, model.state_dict()


def test_weight_zero_is_simclr_to_the_bit(
    config: TrialConfig, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("shared views were drawn")

    monkeypatch.setattr(train_module, "draw_shared_views", refuse)
    forwards = []
    monkeypatch.setattr(
        train_module,
        "apply_views",
        lambda images, parameters: forwards.append(len(images)) or apply_views(images, parameters),
    )
    config = config.model_copy(
        update={"equivariance_weight": 0.0, "schedule": "constant", "warmup_epochs": 0}
    )
    measurements = run(config, tiny, tmp_path)
    losses, weights = simclr(config, tiny)
    assert [m.metrics["train_loss"] for m in measurements] == losses
    assert [m.metrics["train_info_nce"] for m in measurements] == losses
    assert all(m.metrics["train_equivariance"] == 0 for m in measurements)
    assert forwards == [32] * 2 * 3 * config.epochs  # two views, three steps an epoch
    trained = opened(tmp_path / "state-00003.pt", CPU)["model"]
    assert all(torch.equal(trained[name], weights[name]) for name in weights)


def test_a_weight_does_not_move_the_views_of_info_nce(
    config: TrialConfig, tiny: Dataset, tmp_path: Path
) -> None:
    """With a weight too small to matter, the first step's InfoNCE is SimCLR's."""
    first_batch = dataclasses.replace(tiny, train=Split(tiny.train.images[:32], tiny.train.labels[:32]))
    one_step = config.model_copy(update={"epochs": 1})
    plain = one_step.model_copy(update={"equivariance_weight": 0.0})
    with_weight = run(one_step, first_batch, tmp_path / "care")[0].metrics
    assert with_weight["train_info_nce"] == pytest.approx(
        run(plain, first_batch, tmp_path / "simclr")[0].metrics["train_info_nce"], rel=1e-6
    )


def test_divergence_is_raised_before_the_optimiser_moves(
    config: TrialConfig, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bases, "info_nce", lambda z1, *_: z1.sum() * float("nan"))
    trial = train_module._Trial(config, tiny, CPU)
    before = {name: value.clone() for name, value in trial.model.named_parameters()}
    with pytest.raises(
        TrialDiverged, match=r"epoch 1, step 1 of 3: loss nan, info_nce nan, equivariance 0\."
    ):
        trial.train_epoch()
    assert all(torch.equal(value, before[name]) for name, value in trial.model.named_parameters())
    with pytest.raises(TrialDiverged):
        run(config, tiny, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_gradient_that_is_not_finite_is_divergence(
    config: TrialConfig, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bases, "info_nce", lambda z1, *_: (z1.sum() * 0).sqrt())
    trial = train_module._Trial(config, tiny, CPU)
    with pytest.raises(TrialDiverged, match="gradient norm"):
        trial.train_epoch()


def test_a_last_step_into_the_void_is_divergence(
    config: TrialConfig, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "_learning_rate", lambda *_: float("inf"))
    one_step = dataclasses.replace(tiny, train=Split(tiny.train.images[:32], tiny.train.labels[:32]))
    with pytest.raises(TrialDiverged, match="not finite after epoch 1"):
        run(config.model_copy(update={"epochs": 1}), one_step, tmp_path)
    assert not (tmp_path / "checkpoint.tar").exists()


def test_a_rate_too_high_diverges(config: TrialConfig, tiny: Dataset, tmp_path: Path) -> None:
    wild = config.model_copy(
        update={"optimizer": "sgd", "learning_rate": 100.0, "equivariance_weight": 1e6, "weight_decay": 10.0}
    )
    with pytest.raises(TrialDiverged, match="a lower learning_rate"):
        run(wild.model_copy(update={"epochs": 40, "schedule": "constant"}), tiny, tmp_path)


def test_fewer_images_than_a_batch(config: TrialConfig, tiny: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="fewer than batch_size"):
        run(config.model_copy(update={"batch_size": 128}), tiny, tmp_path)


def test_the_test_split_is_not_read(config: TrialConfig, tiny: Dataset, tmp_path: Path) -> None:
    poisoned = dataclasses.replace(tiny, test=Split(None, None))  # type: ignore[arg-type]
    assert run(config, poisoned, tmp_path)


def test_learning_rates(config: TrialConfig) -> None:
    config = config.model_copy(update={"epochs": 5, "warmup_epochs": 1, "learning_rate": 1.0})
    rates = [train_module._learning_rate(config, step, 4) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[12] == pytest.approx(0.5)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.02
    constant = config.model_copy(update={"schedule": "constant"})
    assert train_module._learning_rate(constant, 19, 4) == 1.0


def test_untrained_measures_the_start(config: TrialConfig, tiny: Dataset) -> None:
    metrics = untrained(config, tiny, device=CPU)
    assert set(metrics) == {name for name in LAST_EPOCH if not name.startswith("train_")}
    assert metrics == untrained(config, tiny, device=CPU)
    assert metrics != untrained(config.model_copy(update={"seed": 1}), tiny, device=CPU)
    json.dumps(metrics, allow_nan=False)


def test_sgd_has_momentum() -> None:
    trial_config = TrialConfig(optimizer="sgd", learning_rate=0.06, weight_decay=5e-4)
    (group,) = _build_optimizer(build_model("resnet_tiny", 0), trial_config).param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.06, 0.9, 5e-4)


@pytest.fixture
def larger(tiny: Dataset) -> Dataset:
    """Ten train and four validation images of 64 px."""

    def scaled(split: Split, size: int) -> Split:
        return Split(interpolate(split.images[:size], size=(64, 64)), split.labels[:size])

    return dataclasses.replace(tiny, train=scaled(tiny.train, 10), validation=scaled(tiny.validation, 4))


def test_a_step_with_torchvisions_stem(config: TrialConfig, larger: Dataset, tmp_path: Path) -> None:
    changes = {"encoder": "resnet18", "stem": "imagenet", "epochs": 1, "warmup_epochs": 0}
    config = config.model_copy(update=changes | {"batch_size": 8})
    (measurement,) = run(config, larger, tmp_path)
    assert set(measurement.metrics) == LAST_EPOCH
    encoder, before = load(tmp_path / "checkpoint.tar"), build_model("resnet18", config.seed, "imagenet")
    trained, untouched = encoder.model.encoder.conv1.weight, before.encoder.conv1.weight
    assert trained.shape == (64, 3, 7, 7)
    assert 0 < (trained - untouched).abs().max() < 0.1
    assert set(untrained(config, larger, device=CPU)) <= LAST_EPOCH


@pytest.mark.parametrize("least", [0.08, 0.6])
def test_all_views_of_a_trial_have_its_least_crop_scale(
    config: TrialConfig, larger: Dataset, least: float
) -> None:
    config = config.model_copy(update={"least_crop_scale": least, "batch_size": 8})
    trial = train_module._Trial(config, larger, CPU)
    groups = [group for epoch in range(1, 30) for group in trial._draw_views(epoch)]
    shares = torch.stack([p.height * p.width / 64**2 for p in groups]).view(-1, 4, 8)
    assert shares.amin((0, 2)).tolist() == pytest.approx([least] * 4, abs=0.06)
