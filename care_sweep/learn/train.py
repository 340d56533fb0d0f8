"""How is one CARE trial trained, epoch by epoch, so that it can be interrupted anywhere and go on?

On several devices a trial is one process for each: all hold its weights and take its steps, a share of each
batch apiece; the first one alone measures, writes and reports.

Shape suffixes: B images of a batch, V view groups that the model embeds, D dimensions.

Permutation and views of an epoch are functions of (seed, epoch), the learning rate of the step: the state of
a trial is its weights, BatchNorm's statistics, the optimiser's moments, what its base holds (MoCo's key
encoder and queue) and the number of epochs done.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from care_sweep.documents import parse
from care_sweep.errors import CheckpointError, DatasetError, TrialCollapsed, TrialDiverged
from care_sweep.learn import checkpoint
from care_sweep.learn.bases import build_base
from care_sweep.learn.captured import CapturedSteps, EpochDraws
from care_sweep.learn.collapse import sign_of_collapse
from care_sweep.learn.data import Dataset
from care_sweep.learn.devices import Outline, refuse_misfits
from care_sweep.learn.encoder import CareModel, build_model
from care_sweep.learn.evaluate import (
    Features,
    embedding_metrics,
    embedding_metrics_of_batches,
    evaluate_encoder,
    extract_features,
    fit_probes,
    knn_metrics,
)
from care_sweep.learn.gang import Gang
from care_sweep.learn.measures import NotFiniteError
from care_sweep.learn.precision import ieee_convolutions, precision_of
from care_sweep.learn.randomness import generator
from care_sweep.learn.ranks import Ranks
from care_sweep.learn.state import check_optimizer, check_tensors, opened, written_beside
from care_sweep.learn.step import StepLosses, divergence, step_losses
from care_sweep.learn.views import ViewParameters, apply_views, draw_shared_views, draw_views, normalise
from care_sweep.spec import CheckpointReference, Measurement, TrialConfig

__all__ = ["default_device", "epochs_alone", "measured_epochs", "train", "untrained"]

_SGD_MOMENTUM = 0.9
_STEPS_TO_SETTLE = 100
"""Before, BatchNorm's running statistics may hold a sound encoder at one point: ResNet-18 at learning rate
0.01 (CARE, 32 images, seed 0) had a spread of 0.00 after 2 steps and 0.13 after 8. By batch statistics it had
0.65 and 0.35, and no lower than 0.34; alignment alone at 0.001 had 0.18 after 4 steps and 0.09 after 8."""


def train(
    config: TrialConfig,
    data: Dataset,
    report: Callable[[Measurement], None],
    *,
    directory: Path,
    device: torch.device | None = None,
    num_devices: int = 1,
    resume_from: Path | None = None,
) -> None:
    """Train one trial and report each epoch.

    Before `report` is called, the state of that epoch is durable as `directory/state-{epoch:05d}.pt`, and in
    the last epoch the deliverable `directory/checkpoint.tar` too, which the measurement names. The two latest
    states are kept; the latest may be of an epoch that was not reported. `report` need not return: what it
    raises passes through. On CPU an interrupted trial that goes on from a state reports what the
    uninterrupted one would have, to the bit.

    Every measurement has, all finite, `train_loss`, `train_equivariance` (0 at weight 0), the contrastive
    part by its name (`train_info_nce`, `train_alignment`, `train_uniformity` or `train_barlow_twins`; none
    for objective none), `uniformity`, `effective_rank`, `embedding_spread`, `validation_knn_accuracy` and
    `num_validation_images`. The last epoch's has also `validation_probe_accuracy` with `_mean` and `_spread`,
    `relative_equivariance`, `wahba_error`, `wahba_error_rms`, `angle_variance`, `angle_variance_over_images`,
    `alignment`, `neighbor_change` and, unless the images are gray, `hue_following`; `evaluate` says what they
    are. Training drops the images that do not fill a last batch, others each epoch.

    Args:
        device: the first GPU if there is one, else the CPU.
        num_devices: GPUs of this machine that share each batch, from `device` on, a process for each; on a
            CPU that many processes. The trial is the same up to rounding, and its states go on with any
            number of devices. Steps over several are not compiled.
        resume_from: a state file of the same configuration and images; training goes on after its epoch. A
            state of the last epoch is evaluated and reported again.

    Raises:
        TrialDiverged: a loss or gradient is not finite, and the weights did not move; or the last step of an
            epoch led to embeddings that are not finite.
        TrialCollapsed: after an epoch, the validation embeddings are at one point or on one line. That epoch
            is not reported. Epochs of the warm-up are not judged. Of the first 100 steps only a trial's last
            epoch is, by the embeddings that batch statistics give.
        DatasetError: there are fewer train images than `batch_size`.
        CheckpointError: the state is damaged, or of another configuration or other images.
        InvalidDocument: the configuration is not for so many devices.
        RankLost, torch.OutOfMemoryError, RuntimeError: the process of another device died, lacked memory or
            failed otherwise.
    """
    device = default_device() if device is None else device
    refuse_misfits(config, num_devices, device)
    data = data.on(device)
    trial = _Trial(config, data, device, Ranks(0, num_devices) if num_devices > 1 else None)
    directory.mkdir(parents=True, exist_ok=True)
    losses = trial.restore(resume_from) if resume_from is not None else {}
    with Gang(num_devices, device, _follow, config, Outline.of(data), resume_from) as gang:
        gang.run(trial.give_images)
        _train_epochs(trial, losses, gang, report, directory)


def _train_epochs(
    trial: "_Trial",
    losses: dict[str, float],
    gang: Gang,
    report: Callable[[Measurement], None],
    directory: Path,
) -> None:
    """The epochs that are left; `losses` are those of the last one done."""
    config, device = trial.config, trial.device
    while True:
        started, num_images = time.perf_counter(), 0
        if trial.num_epochs_done < config.epochs:
            losses, num_images = gang.run(trial.train_epoch), trial.num_steps * config.batch_size
        epoch = trial.num_epochs_done
        with written_beside(_state_path(directory, epoch), trial.state(losses), device):
            metrics, reference = _evaluate(trial, losses, directory, started)
        seconds = time.perf_counter() - started
        report(
            Measurement(
                epoch=epoch, metrics=metrics, seconds=seconds, num_images=num_images, checkpoint=reference
            )
        )
        _state_path(directory, epoch - 2).unlink(missing_ok=True)
        if epoch == config.epochs:
            return


def _follow(
    ranks: Ranks, device: torch.device, config: TrialConfig, outline: Outline, resume_from: Path | None
) -> Iterator[None]:
    """What the ranks after the first do: take the images, and an epoch's steps at each further turn."""
    trial = _Trial(config, outline.filled(ranks, device), device, ranks)
    if resume_from is not None:
        trial.restore(resume_from)
    while True:
        yield
        trial.train_epoch()


def untrained(config: TrialConfig, data: Dataset, *, device: torch.device | None = None) -> dict[str, float]:
    """The measures of `evaluate_encoder` for the encoder that `config` would start from."""
    device = default_device() if device is None else device
    model = build_model(config.encoder, config.seed, config.stem).to(device)
    return evaluate_encoder(model, data, config, device=device)


def epochs_alone(config: TrialConfig, data: Dataset, *, device: torch.device) -> Iterator[None]:
    """Train an epoch at each turn, for ever and for the time that it takes: no measure, no report, no file.

    Raises:
        TrialDiverged, DatasetError: as `train`.
    """
    without_end = config.model_copy(update={"epochs": sys.maxsize})  # a next epoch's views are always drawn
    trial = _Trial(without_end, data, device)
    while True:
        trial.train_epoch()
        yield


def measured_epochs(
    config: TrialConfig, data: Dataset, *, device: torch.device
) -> Iterator[dict[str, float]]:
    """Train, and answer each epoch what `train` reports, without files and what the last epoch alone has.

    Raises:
        TrialDiverged, TrialCollapsed, DatasetError: as `train`.
    """
    trial = _Trial(config, data.on(device), device)
    for _ in range(config.epochs):
        started = time.perf_counter()
        yield _judge(trial, trial.train_epoch(), started)[1]


def default_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _state_path(directory: Path, epoch: int) -> Path:
    return directory / f"state-{epoch:05d}.pt"


def _evaluate(
    trial: "_Trial", losses: dict[str, float], directory: Path, started: float
) -> tuple[dict[str, float], CheckpointReference | None]:
    """What an epoch reports, and the last one's checkpoint; weights and optimiser stay as they are."""
    features, metrics = _judge(trial, losses, started)
    if trial.num_epochs_done < trial.config.epochs:
        return metrics, None
    return _deliver(trial, features, metrics, directory)


def _judge(trial: "_Trial", losses: dict[str, float], started: float) -> tuple[Features, dict[str, float]]:
    """What every epoch reports, and the features that say so."""
    epoch = trial.num_epochs_done
    features = extract_features(trial.model, trial.data, trial.device, trial.measuring_precision)
    try:
        measures = {**embedding_metrics(trial.model, features), **knn_metrics(features, trial.config)}
    except NotFiniteError as error:
        raise TrialDiverged(
            f"embeddings not finite after epoch {epoch}; a lower learning_rate may help"
        ) from error
    metrics = {**losses, **measures}
    if (sign := _sign_of_collapse(trial, metrics)) is not None:
        seconds = time.perf_counter() - started
        raise TrialCollapsed(f"after epoch {epoch}: {sign}", epoch=epoch, metrics=metrics, seconds=seconds)
    return features, metrics


def _sign_of_collapse(trial: "_Trial", metrics: dict[str, float]) -> str | None:
    """What says after this epoch that the encoder has collapsed, if it can be judged."""
    config, epoch = trial.config, trial.num_epochs_done
    if epoch <= config.warmup_epochs:
        return None
    if epoch * trial.num_steps >= _STEPS_TO_SETTLE:
        return sign_of_collapse(metrics)
    if epoch < config.epochs:
        return None
    return sign_of_collapse(embedding_metrics_of_batches(trial.model, trial.data, trial.device))


def _deliver(
    trial: "_Trial", features: Features, metrics: dict[str, float], directory: Path
) -> tuple[dict[str, float], CheckpointReference]:
    """The metrics of the last epoch, and the checkpoint."""
    config, data, device = trial.config, trial.data, trial.device
    probes = fit_probes(features, data, config)
    try:
        measures = evaluate_encoder(
            trial.model, data, config, device=device, features=features, probes=probes
        )
    except NotFiniteError as error:
        raise TrialDiverged(
            f"not finite after the last epoch: {error}; a lower learning_rate may help"
        ) from error
    metrics = {**metrics, **measures}
    if not all(math.isfinite(value) for value in metrics.values()):
        raise TrialDiverged(f"not finite after the last epoch: {metrics}; a lower learning_rate may help")
    path = directory / checkpoint.CHECKPOINT_NAME
    reference = checkpoint.save(
        path, model=trial.model, probe=probes[0], config=config, metrics=metrics, data=data
    )
    return metrics, reference


class _Trial:
    """A model in training: weights, optimiser, base, and how many epochs are done."""

    def __init__(
        self, config: TrialConfig, data: Dataset, device: torch.device, ranks: Ranks | None = None
    ) -> None:
        self.config, self.data, self.device, self.ranks = config, data, device, ranks
        self.num_steps = len(data.train.labels) // config.batch_size  # of an epoch
        if self.num_steps == 0:
            raise DatasetError(
                f"dataset {data.name!r} has {len(data.train.labels)} train images, fewer than batch_size "
                f"{config.batch_size}: use a smaller batch_size or more images"
            )
        self.images = data.train.images.to(device)
        self.precision = precision_of(config, device)
        self.model = build_model(config.encoder, config.seed, config.stem).to(device)
        self.base = build_base(config, self.model, ranks)
        is_compiled = ranks is None and (
            config.compile == "always" or (config.compile == "auto" and device.type == "cuda")
        )
        self.optimizer = _build_optimizer(self.model, config, is_on_device=is_compiled)
        num_groups = self.base.num_embedded + (2 if config.equivariance_weight else 0)
        weight = (
            torch.tensor(config.equivariance_weight, device=device) if config.equivariance_weight else None
        )
        self._num_batches = num_groups if config.batch_norm == "per_view" else 1
        self._options: dict[str, Any] = {
            "num_groups": num_groups,
            "equivariance_weight": weight if config.equivariance_weight else None,
            "num_splits": config.num_splits,
            "precision": self.precision,
        }
        self._captured = self._capture() if is_compiled else None
        self._drawn: tuple[int, EpochDraws] | None = None
        self.num_epochs_done = 0

    def _capture(self) -> CapturedSteps:
        return CapturedSteps(
            model=self.model,
            base=self.base,
            optimizer=self.optimizer,
            images=self.images,
            mean=self.data.mean,
            std=self.data.std,
            batch_size=self.config.batch_size,
            num_batches=self._num_batches,
            options=self._options,
        )

    @property
    def measuring_precision(self) -> torch.dtype:
        """What features are computed in: the last epoch's, which rank trials, in float32."""
        return self.precision if self.num_epochs_done < self.config.epochs else torch.float32

    def train_epoch(self) -> dict[str, float]:
        """One pass over the train images; the mean losses of its steps.

        Raises:
            TrialDiverged: a loss or gradient is not finite.
        """
        epoch = self.num_epochs_done + 1
        draws = self._draws(epoch)
        self.model.train()
        if self._captured is None:
            means = self._take_steps(draws)
        else:
            self._captured.begin_epoch(draws)
            if epoch < self.config.epochs:  # while the device is at it
                self._drawn = epoch + 1, self._draws(epoch + 1)
            means = self._captured.end_epoch(self._where(epoch, "{step}"))
        self.num_epochs_done = epoch
        loss, contrast, equivariance = means
        named = {} if self.base.contrast is None else {f"train_{self.base.contrast}": contrast}
        return {"train_loss": loss, **named, "train_equivariance": equivariance}

    def _where(self, epoch: int, step: int | str) -> str:
        return f"epoch {epoch}, step {step} of {self.num_steps}"

    def _draws(self, epoch: int) -> EpochDraws:
        if self._drawn is not None and self._drawn[0] == epoch:
            return self._drawn[1]
        order = torch.randperm(len(self.images), generator=generator(self.config.seed, "permutation", epoch))
        first = (epoch - 1) * self.num_steps
        rates = [_learning_rate(self.config, first + step, self.num_steps) for step in range(self.num_steps)]
        return EpochDraws(order, self._draw_views(epoch), rates)

    def _draw_views(self, epoch: int) -> list[ViewParameters]:
        """The epoch's augmentations, a group of views each: those the model embeds, then those the base does.

        The base's have one for each image; the two of L_equi one for each split, or one for each batch.
        """
        config, size, strength = self.config, self.data.image_size, self.config.augmentation_strength
        scale = config.least_crop_scale
        num_images = self.num_steps * config.batch_size
        source = generator(config.seed, "views", epoch)
        num_embedded, num_own = self.base.num_embedded, self.base.num_embedded + self.base.num_held
        own = [draw_views(num_images, size, strength, source, scale) for _ in range(num_own)]
        if config.equivariance_weight == 0:
            return own
        num_shared = self.num_steps * (config.num_splits if config.augmentation_scope == "split" else 1)
        source = generator(config.seed, "shared views", epoch)
        shared = [draw_shared_views(num_images, num_shared, size, strength, source, scale) for _ in range(2)]
        return [*own[:num_embedded], *shared, *own[num_embedded:]]

    @ieee_convolutions()
    def _take_steps(self, draws: EpochDraws) -> list[float]:
        """The steps of an epoch one by one; the means of their losses."""
        total = torch.zeros(3, device=self.device)
        for step, rate in enumerate(draws.rates):
            rows = self._rows(step)
            images = self.images[draws.order[rows].to(self.device, non_blocking=True)]
            total += self._step(images, [group[rows] for group in draws.views], step, rate)
        means: list[float] = (total / self.num_steps).tolist()
        return means

    def _rows(self, step: int) -> slice:
        """Of the epoch's draws those of a step, or this rank's share of them."""
        size = self.config.batch_size
        share = slice(0, size) if self.ranks is None else self.ranks.share(size)
        return slice(step * size + share.start, step * size + share.stop)

    def _step(self, images: Tensor, view_groups: list[ViewParameters], step: int, rate: float) -> Tensor:
        """One step of the optimiser; its losses (total, contrast, equivariance), still on the device."""
        views = torch.cat([apply_views(images, parameters) for parameters in view_groups])
        normalise(views, self.data.mean, self.data.std, out=views)
        with self.model.view_groups(self._num_batches, self.ranks):
            losses = step_losses(self.model, self.base, views, **self._options, ranks=self.ranks)
        self.optimizer.zero_grad()
        losses.loss.backward()  # type: ignore[no-untyped-call]
        if self.ranks is not None:
            self.ranks.average([p.grad for p in self.model.parameters() if p.grad is not None])
        self._refuse_divergence(losses, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.base.follow(self.model)
        return losses.stacked()

    def _refuse_divergence(self, losses: StepLosses, step: int) -> None:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(losses.loss + norm):
            where = self._where(self.num_epochs_done + 1, step + 1)
            raise divergence(where, self.base.contrast, [*losses.stacked().tolist(), norm.item()])

    def give_images(self) -> None:
        """Send them to the other ranks."""
        if self.ranks is not None:
            self.ranks.of_the_first(self.images)

    # --- the state ------------------------------------------------------------------------------------------

    def state(self, losses: dict[str, float]) -> dict[str, Any]:
        """All that training needs to go on after this epoch, for `restore`; tensors are the trial's own."""
        return {
            "config": self.config.model_dump_json(),
            "fingerprint": self.data.fingerprint,
            "num_epochs_done": self.num_epochs_done,
            "losses": losses,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "base": self.base.state_dict(),
        }

    def restore(self, path: Path) -> dict[str, float]:
        """Go on where the state stands; its epoch's losses.

        Raises:
            CheckpointError: the state is damaged, or of another configuration or other images. The trial is
                as it was before.
        """
        state = opened(path, self.device)
        try:
            identity = parse(TrialConfig, json.loads(state["config"])), state["fingerprint"]
            if identity != (self.config, self.data.fingerprint):
                raise CheckpointError(f"{path}: the state of another configuration or dataset; train anew")
            num_epochs_done = int(state["num_epochs_done"])
            if not 1 <= num_epochs_done <= self.config.epochs:
                raise ValueError(f"{num_epochs_done} of {self.config.epochs} epochs are done")
            losses = {str(name): float(value) for name, value in state["losses"].items()}
            check_tensors(self.model.state_dict(), state["model"])
            check_tensors(self.base.state_dict(), state["base"])
            check_optimizer(self.optimizer, state["optimizer"])
            self._load_optimizer(state["optimizer"])
            self.base.load_state_dict(state["base"])
            self.model.load_state_dict(state["model"])
        except CheckpointError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"{path}: its parts do not make this trial ({error}); train anew"
            ) from error
        self.num_epochs_done = num_epochs_done
        return losses

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        """The moments alone; where learning rates lie depends on the device, not on who wrote the state."""
        own = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state)
        for group, options in zip(self.optimizer.param_groups, own, strict=True):
            group.update(options)


def _build_optimizer(
    model: CareModel, config: TrialConfig, *, is_on_device: bool = False
) -> torch.optim.Optimizer:
    """Fused; on the device, its learning rate is a tensor there, and a graph may be captured of its step."""
    device = next(model.parameters()).device
    rate = torch.tensor(config.learning_rate, device=device) if is_on_device else config.learning_rate
    if config.optimizer == "adam":
        return torch.optim.Adam(
            model.parameters(),
            lr=rate,
            weight_decay=config.weight_decay,
            fused=True,
            capturable=is_on_device and device.type == "cuda",
        )
    return torch.optim.SGD(
        model.parameters(),
        lr=rate,
        momentum=_SGD_MOMENTUM,
        weight_decay=config.weight_decay,
        fused=True,
    )


def _learning_rate(config: TrialConfig, step: int, steps_per_epoch: int) -> float:
    """The rate of a step, counted over the whole trial: linear warm-up, then constant or a cosine to 0."""
    warmup, total = config.warmup_epochs * steps_per_epoch, config.epochs * steps_per_epoch
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
