"""A trial: the same trace twice, interrupted like uninterrupted, SimCLR at weight 0, and every way to end."""

import dataclasses
import errno
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from care_sweep.errors import CheckpointError, DatasetError, TrialDiverged
from care_sweep.learn import bases
from care_sweep.learn import state as state_module
from care_sweep.learn import train as train_module
from care_sweep.learn.checkpoint import load
from care_sweep.learn.data import Dataset, Split
from care_sweep.learn.encoder import build_model
from care_sweep.learn.objective import info_nce
from care_sweep.learn.randomness import generator
from care_sweep.learn.state import opened, sealed, written_beside
from care_sweep.learn.train import _build_optimizer, train, untrained
from care_sweep.learn.views import apply_views, draw_views, normalise
from care_sweep.spec import Measurement, TrialConfig
from care_sweep.storage.durable import write_durably

CPU = torch.device("cpu")
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


def run(
    config: TrialConfig,
    data: Dataset,
    directory: Path,
    *,
    resume_from: Path | None = None,
    then: Callable[[Measurement], None] = lambda _: None,
) -> list[Measurement]:
    reported: list[Measurement] = []

    def report(measurement: Measurement) -> None:
        reported.append(measurement)
        then(measurement)

    train(config, data, report, directory=directory, device=CPU, resume_from=resume_from)
    return reported


def trace(measurements: list[Measurement]) -> list[dict[str, float]]:
    return [measurement.metrics for measurement in measurements]


def stop_after(epoch: int) -> Callable[[Measurement], None]:
    def stop(measurement: Measurement) -> None:
        if measurement.epoch == epoch:
            raise SystemExit(0)

    return stop


def test_measurements_are_complete_and_durable(config: TrialConfig, tiny: Dataset, tmp_path: Path) -> None:
    def check(measurement: Measurement) -> None:
        assert (tmp_path / f"state-{measurement.epoch:05d}.pt").is_file()
        assert (measurement.checkpoint is not None) == (measurement.epoch == config.epochs)

    measurements = run(config, tiny, tmp_path, then=check)
    assert [m.epoch for m in measurements] == [1, 2, 3]
    assert [set(m.metrics) for m in measurements] == [EVERY_EPOCH, EVERY_EPOCH, LAST_EPOCH]
    assert all(m.seconds > 0 for m in measurements)
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


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, RuntimeError])
def test_what_report_raises_passes_through_and_leaves_whole_files(
    config: TrialConfig, tiny: Dataset, tmp_path: Path, error: type[BaseException]
) -> None:
    def stop(_: Measurement) -> None:
        raise error

    with pytest.raises(error):
        run(config, tiny, tmp_path, then=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["state-00001.pt"]


def test_a_state_is_written_while_its_epoch_is_evaluated(
    config: TrialConfig, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for the other, and the report for both."""
    is_written, is_evaluated = threading.Event(), threading.Event()
    knn_metrics = train_module.knn_metrics

    def write(path: Path, content: bytes) -> None:
        is_written.set()
        assert is_evaluated.wait(30)
        time.sleep(0.2)
        write_durably(path, content)

    def evaluate(*arguments: Any) -> dict[str, float]:
        assert is_written.wait(30)
        is_evaluated.set()
        return knn_metrics(*arguments)

    monkeypatch.setattr(state_module, "write_durably", write)
    monkeypatch.setattr(train_module, "knn_metrics", evaluate)
    with pytest.raises(SystemExit):
        run(config, tiny, tmp_path, then=stop_after(1))
    assert (tmp_path / "state-00001.pt").is_file()


def test_an_epoch_whose_state_cannot_be_written_is_not_reported(
    config: TrialConfig, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "no space left", str(path))

    def unexpected(measurement: Measurement) -> None:
        raise AssertionError(f"epoch {measurement.epoch} was reported")

    monkeypatch.setattr(state_module, "write_durably", refuse)
    with pytest.raises(OSError, match="no space left"):
        run(config, tiny, tmp_path, then=unexpected)


def test_a_failed_evaluation_leaves_no_half_written_state(
    config: TrialConfig, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, content: bytes) -> None:
        time.sleep(0.2)
        write_durably(path, content)

    def fail(*_: Any) -> dict[str, float]:
        raise RuntimeError("no neighbours")

    monkeypatch.setattr(state_module, "write_durably", write)
    monkeypatch.setattr(train_module, "knn_metrics", fail)
    with pytest.raises(RuntimeError, match="no neighbours"):
        run(config, tiny, tmp_path)
    assert opened(tmp_path / "state-00001.pt", CPU)["num_epochs_done"] == 1


@pytest.mark.gpu
def test_a_state_is_of_the_moment_at_which_its_writing_began(tmp_path: Path) -> None:
    weights = torch.arange(2**24, dtype=torch.float32, device="cuda")
    with written_beside(tmp_path / "state", {"model": {"weights": weights}}, weights.device):
        weights.zero_()
    found = opened(tmp_path / "state", CPU)["model"]["weights"]
    assert torch.equal(found, torch.arange(2**24, dtype=torch.float32))


def test_states_of_others_and_damaged_states_are_refused(
    config: TrialConfig, tiny: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        run(config, tiny, tmp_path, then=stop_after(1))
    state = tmp_path / "state-00001.pt"
    with pytest.raises(CheckpointError, match="another configuration"):
        run(config.model_copy(update={"temperature": 0.1}), tiny, tmp_path, resume_from=state)
    with pytest.raises(CheckpointError, match="another configuration or dataset"):
        run(config, dataclasses.replace(tiny, fingerprint="1" * 64), tmp_path, resume_from=state)
    with pytest.raises(CheckpointError, match="no readable training state"):
        run(config, tiny, tmp_path, resume_from=tmp_path / "absent.pt")
    for content in (b"", b"junk", state.read_bytes()[:-100]):
        state.write_bytes(content)
        with pytest.raises(CheckpointError, match="no readable training state"):
            run(config, tiny, tmp_path, resume_from=state)


def test_no_damage_to_a_state_is_unseen(config: TrialConfig, tiny: Dataset, tmp_path: Path) -> None:
    trial = train_module._Trial(config, tiny, CPU)
    path, small = tmp_path / "state-00001.pt", tmp_path / "small.pt"
    trial.num_epochs_done = 1
    path.write_bytes(sealed(trial.state({"train_loss": 1.0})))
    small.write_bytes(sealed({"num_epochs_done": 1, "weights": torch.arange(60.0)}))
    assert trial.restore(path) == {"train_loss": 1.0}
    assert opened(small, CPU)["num_epochs_done"] == 1
    source = torch.Generator().manual_seed(0)
    for file, num_flips in ((small, 90), (path, 10)):
        whole = file.read_bytes()
        for place in torch.randint(8 * len(whole), (num_flips,), generator=source).tolist():
            with file.open("r+b") as damaged:
                damaged.seek(place // 8)
                damaged.write(bytes([whole[place // 8] ^ 1 << place % 8]))
            with pytest.raises(CheckpointError, match=f"{file}: .*train anew"):
                opened(file, CPU)
            file.write_bytes(whole)
        for length in (0, 1, 30, 70, *torch.randint(len(whole), (6,), generator=source).tolist()):
            file.write_bytes(whole[:length])
            with pytest.raises(CheckpointError, match=f"{file}: .*train anew"):
                opened(file, CPU)
        file.write_bytes(whole + b"more")
        with pytest.raises(CheckpointError, match="SHA-256"):
            opened(file, CPU)


def test_a_state_of_an_older_version_is_refused(config: TrialConfig, tiny: Dataset, tmp_path: Path) -> None:
    torch.save({"config": config.model_dump_json()}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="written by an older care-sweep; train anew"):
        run(config, tiny, tmp_path, resume_from=tmp_path / "state.pt")


UNFIT: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{
        f"no {name}": lambda state, name=name: state.pop(name)
        for name in ("config", "model", "base", "losses")
    },
    **{
        f"without {name}": lambda state, name=name: state.pop(name)
        for name in ("optimizer", "num_epochs_done")
    },
    "a weight of another shape": lambda state: state["model"].update({"projector.3.bias": torch.zeros(7)}),
    "a weight of another type": lambda state: state["model"].update(
        {"projector.3.bias": torch.zeros(128, dtype=torch.float64)}
    ),
    "a stranger": lambda state: state["model"].update(stranger=torch.zeros(1)),
    "a base's stranger": lambda state: state["base"].update(queue=torch.zeros(1)),
    "moments of another shape": lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)),
    "fewer parameters": lambda state: state["optimizer"]["param_groups"][0]["params"].pop(),
    "no groups": lambda state: state["optimizer"].pop("param_groups"),
    "more epochs than all": lambda state: state.update(num_epochs_done=4),
    "no epoch": lambda state: state.update(num_epochs_done=0),
    "words": lambda state: state.update(num_epochs_done="many"),
    "losses of words": lambda state: state.update(losses=["train_loss"]),
}


@pytest.fixture(scope="module")
def state_after_an_epoch(tiny: Dataset) -> tuple[TrialConfig, bytes]:
    config = TrialConfig(encoder="resnet_tiny", epochs=3, batch_size=32, num_splits=4)
    trial = train_module._Trial(config, tiny, CPU)
    return config, sealed(trial.state(trial.train_epoch()))


@pytest.mark.parametrize("change", UNFIT.values(), ids=UNFIT.keys())
def test_a_state_that_does_not_fit_leaves_the_trial_as_it_was(
    state_after_an_epoch: tuple[TrialConfig, bytes],
    tiny: Dataset,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], Any],
) -> None:
    config, content = state_after_an_epoch
    path = tmp_path / "state.pt"
    path.write_bytes(content)
    state = opened(path, CPU)
    change(state)
    path.write_bytes(sealed(state))
    trial = train_module._Trial(config, tiny, CPU)
    before = sealed(trial.state({}))
    with pytest.raises(CheckpointError, match=f"{path}: its parts do not make this trial .*train anew"):
        trial.restore(path)
    assert sealed(trial.state({})) == before


def test_a_state_is_never_unpickled(config: TrialConfig, tiny: Dataset, tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return Path.touch, (str(tmp_path / "harm"),)

    (tmp_path / "state.pt").write_bytes(sealed({"config": Harmful()}))
    with pytest.raises(CheckpointError, match="no readable training state"):
        run(config, tiny, tmp_path, resume_from=tmp_path / "state.pt")
    assert not (tmp_path / "harm").exists()


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
