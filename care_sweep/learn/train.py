"""How is one CARE trial trained, epoch by epoch, so that it can be interrupted anywhere and go on?

Shape suffixes: B images of a batch, V view groups that the model embeds, D dimensions.

Permutation and views of an epoch are functions of (seed, epoch), the learning rate of the step: the state of
a trial is its weights, BatchNorm's statistics, the optimiser's moments, what its base holds (MoCo's key
encoder and queue) and the number of epochs done.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from care_sweep.documents import parse
from care_sweep.errors import CheckpointError, DatasetError, TrialCollapsed, TrialDiverged
from care_sweep.learn import checkpoint
from care_sweep.learn.bases import build_base
from care_sweep.learn.collapse import sign_of_collapse
from care_sweep.learn.data import Dataset
from care_sweep.learn.encoder import CareModel, build_model
from care_sweep.learn.evaluate import (
    Features,
    embedding_metrics,
    embedding_metrics_of_batches,
    evaluate_encoder,
    extract_features,
    fit_probe,
    knn_metrics,
)
from care_sweep.learn.measures import NotFiniteError
from care_sweep.learn.objective import orthogonal_equivariance
from care_sweep.learn.randomness import generator
from care_sweep.learn.state import check_optimizer, check_tensors, opened, sealed
from care_sweep.learn.views import ViewParameters, apply_views, draw_shared_views, draw_views, normalise
from care_sweep.spec import CheckpointReference, Measurement, TrialConfig
from care_sweep.storage.durable import write_durably

__all__ = ["train", "untrained"]

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
    resume_from: Path | None = None,
) -> None:
    """Train one trial and report each epoch.

    Before `report` is called, the state of that epoch is durable as `directory/state-{epoch:05d}.pt`, and in
    the last epoch the deliverable `directory/checkpoint.tar` too, which the measurement names. The two latest
    states are kept. `report` need not return: what it raises passes through. On CPU an interrupted trial that
    goes on from a state reports what the uninterrupted one would have, to the bit.

    Every measurement has, all finite, `train_loss`, `train_equivariance` (0 at weight 0), the contrastive
    part by its name (`train_info_nce`, `train_alignment`, `train_uniformity` or `train_barlow_twins`; none
    for objective none), `uniformity`, `effective_rank`, `embedding_spread`, `validation_knn_accuracy` and
    `num_validation_images`. The last epoch's has also `validation_probe_accuracy` with `_mean` and `_spread`,
    `relative_equivariance`, `wahba_error`, `wahba_error_rms`, `angle_variance`, `angle_variance_over_images`,
    `alignment`, `neighbor_change` and, unless the images are gray, `hue_following`; `evaluate` says what they
    are. Training drops the images that do not fill a last batch, others each epoch.

    Args:
        device: the first GPU if there is one, else the CPU.
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
    """
    trial = _Trial(config, data, _default_device() if device is None else device)
    directory.mkdir(parents=True, exist_ok=True)
    losses = trial.restore(resume_from) if resume_from is not None else {}
    while True:
        started = time.perf_counter()
        if trial.num_epochs_done < config.epochs:
            losses = trial.train_epoch()
        epoch, features = trial.num_epochs_done, extract_features(trial.model, data, trial.device)
        metrics, reference = {**losses, **_measure(trial, features)}, None
        if (sign := _sign_of_collapse(trial, metrics)) is not None:
            seconds = time.perf_counter() - started
            raise TrialCollapsed(
                f"after epoch {epoch}: {sign}", epoch=epoch, metrics=metrics, seconds=seconds
            )
        if epoch == config.epochs:
            metrics, reference = _deliver(trial, features, metrics, directory)
        write_durably(_state_path(directory, epoch), trial.state(losses))
        seconds = time.perf_counter() - started
        report(Measurement(epoch=epoch, metrics=metrics, seconds=seconds, checkpoint=reference))
        _state_path(directory, epoch - 2).unlink(missing_ok=True)
        if epoch == config.epochs:
            return


def untrained(config: TrialConfig, data: Dataset, *, device: torch.device | None = None) -> dict[str, float]:
    """The measures of `evaluate_encoder` for the encoder that `config` would start from."""
    device = _default_device() if device is None else device
    model = build_model(config.encoder, config.seed, config.stem).to(device)
    return evaluate_encoder(model, data, config, device=device)


def _default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _state_path(directory: Path, epoch: int) -> Path:
    return directory / f"state-{epoch:05d}.pt"


def _measure(trial: "_Trial", features: Features) -> dict[str, float]:
    """What every epoch reports beside its losses."""
    try:
        return {**embedding_metrics(trial.model, features), **knn_metrics(features, trial.config)}
    except NotFiniteError as error:
        epoch = trial.num_epochs_done
        raise TrialDiverged(
            f"embeddings not finite after epoch {epoch}; a lower learning_rate may help"
        ) from error


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
    probe = fit_probe(features, data, config)
    try:
        measures = evaluate_encoder(trial.model, data, config, device=device, features=features, probe=probe)
    except NotFiniteError as error:
        raise TrialDiverged(
            f"not finite after the last epoch: {error}; a lower learning_rate may help"
        ) from error
    metrics = {**metrics, **measures}
    if not all(math.isfinite(value) for value in metrics.values()):
        raise TrialDiverged(f"not finite after the last epoch: {metrics}; a lower learning_rate may help")
    path = directory / checkpoint.CHECKPOINT_NAME
    reference = checkpoint.save(
        path, model=trial.model, probe=probe, config=config, metrics=metrics, data=data
    )
    return metrics, reference


@dataclass(frozen=True)
class _Losses:
    """The parts of one step's loss, on the device."""

    loss: Tensor
    contrast: Tensor
    equivariance: Tensor

    def stacked(self) -> Tensor:
        return torch.stack([self.loss, self.contrast, self.equivariance]).detach()


class _Trial:
    """A model in training: weights, optimiser, base, and how many epochs are done."""

    def __init__(self, config: TrialConfig, data: Dataset, device: torch.device) -> None:
        self.config, self.data, self.device = config, data, device
        self.num_steps = len(data.train.labels) // config.batch_size  # of an epoch
        if self.num_steps == 0:
            raise DatasetError(
                f"dataset {data.name!r} has {len(data.train.labels)} train images, fewer than batch_size "
                f"{config.batch_size}: use a smaller batch_size or more images"
            )
        self.images = data.train.images.to(device)
        self.model = build_model(config.encoder, config.seed, config.stem).to(device)
        self.base = build_base(config, self.model)
        self.optimizer = _build_optimizer(self.model, config)
        self.num_epochs_done = 0

    def train_epoch(self) -> dict[str, float]:
        """One pass over the train images; the mean losses of its steps.

        Raises:
            TrialDiverged: a loss or gradient is not finite.
        """
        config, epoch = self.config, self.num_epochs_done + 1
        order = torch.randperm(len(self.images), generator=generator(config.seed, "permutation", epoch))
        view_groups = self._draw_views(epoch)
        total = torch.zeros(3, device=self.device)
        self.model.train()
        for step in range(self.num_steps):
            batch = slice(step * config.batch_size, (step + 1) * config.batch_size)
            images = self.images[order[batch].to(self.device, non_blocking=True)]
            total += self._step(images, [group[batch] for group in view_groups], step)
        self.num_epochs_done = epoch
        loss, contrast, equivariance = (total / self.num_steps).tolist()
        named = {} if self.base.contrast is None else {f"train_{self.base.contrast}": contrast}
        return {"train_loss": loss, **named, "train_equivariance": equivariance}

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

    def _step(self, images: Tensor, view_groups: list[ViewParameters], step: int) -> Tensor:
        """One step of the optimiser; its losses (total, contrast, equivariance), still on the device."""
        views = torch.cat([apply_views(images, parameters) for parameters in view_groups])
        views = normalise(views, self.data.mean, self.data.std)
        num_groups = len(view_groups) - self.base.num_held
        embedded, held = views.tensor_split([num_groups * len(images)])
        num_batches = num_groups if self.config.batch_norm == "per_view" else 1
        outputs_VBD = self.model.project(embedded, num_batches).chunk(num_groups)
        losses = self._objective(outputs_VBD, held)
        self.optimizer.zero_grad()
        losses.loss.backward()  # type: ignore[no-untyped-call]
        self._refuse_divergence(losses, step)
        self._set_learning_rate(step)
        self.optimizer.step()
        self.base.follow(self.model)
        return losses.stacked()

    def _objective(self, outputs_VBD: Sequence[Tensor], held_views: Tensor) -> _Losses:
        own_BD, shared_BD = outputs_VBD[: self.base.num_embedded], outputs_VBD[self.base.num_embedded :]
        contrast = self.base(own_BD, held_views)
        if self.config.equivariance_weight == 0:
            return _Losses(contrast, contrast, torch.zeros_like(contrast))
        z1_BD, z2_BD = map(normalize, shared_BD)
        equivariance = orthogonal_equivariance(z1_BD, z2_BD, self.config.num_splits)
        return _Losses(contrast + self.config.equivariance_weight * equivariance, contrast, equivariance)

    def _refuse_divergence(self, losses: _Losses, step: int) -> None:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(losses.loss + norm):
            loss, contrast, equivariance = losses.stacked().tolist()
            raise TrialDiverged(
                f"not finite in epoch {self.num_epochs_done + 1}, step {step + 1} of {self.num_steps}: "
                f"loss {loss:g}, {self.base.contrast or 'no contrast'} {contrast:g}, "
                f"equivariance {equivariance:g}, "
                f"gradient norm {norm.item():g}; a lower learning_rate or a higher temperature may help"
            )

    def _set_learning_rate(self, step: int) -> None:
        rate = _learning_rate(self.config, self.num_epochs_done * self.num_steps + step, self.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    # --- the state ------------------------------------------------------------------------------------------

    def state(self, losses: dict[str, float]) -> bytes:
        """All that training needs to go on after this epoch, for `restore`."""
        return sealed(
            {
                "config": self.config.model_dump_json(),
                "fingerprint": self.data.fingerprint,
                "num_epochs_done": self.num_epochs_done,
                "losses": losses,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "base": self.base.state_dict(),
            }
        )

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
            self.optimizer.load_state_dict(state["optimizer"])
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


def _build_optimizer(model: CareModel, config: TrialConfig) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
    return torch.optim.SGD(
        model.parameters(),
        lr=config.learning_rate,
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
