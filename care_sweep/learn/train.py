"""How is one CARE trial trained, epoch by epoch, so that it can be interrupted anywhere and go on?

Shape suffixes: B images of a batch, V view groups (2, or 4 with L_equi), D dimensions.

Permutation and views of an epoch are functions of (seed, epoch), the learning rate of the step: the state of
a trial is its weights, BatchNorm's statistics, the optimiser's moments and the number of epochs done.
"""

import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from care_sweep.errors import CheckpointError, DatasetError, TrialDiverged
from care_sweep.learn import checkpoint
from care_sweep.learn.data import Dataset
from care_sweep.learn.durable import write_durably
from care_sweep.learn.encoder import CareModel, build_model
from care_sweep.learn.evaluate import evaluate_encoder, extract_features, fit_probe, knn_metrics
from care_sweep.learn.objective import info_nce, orthogonal_equivariance
from care_sweep.learn.randomness import generator
from care_sweep.learn.views import ViewParameters, apply_views, draw_shared_views, draw_views, normalise
from care_sweep.spec import CheckpointReference, Measurement, TrialConfig

__all__ = ["train", "untrained"]

_SGD_MOMENTUM = 0.9


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

    Every measurement has finite `train_loss`, `train_info_nce`, `train_equivariance` (0 at weight 0),
    `validation_knn_accuracy` and `num_validation_images`; the last epoch's also `validation_probe_accuracy`
    and `relative_equivariance`. Training drops the images that do not fill a last batch, others each epoch.

    Args:
        device: the first GPU if there is one, else the CPU.
        resume_from: a state file of the same configuration and images; training goes on after its epoch. A
            state of the last epoch is evaluated and reported again.

    Raises:
        TrialDiverged: a loss or gradient is not finite, and the weights did not move; or the last step led
            to embeddings that are not finite.
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
        metrics, reference = _measure(trial, losses, directory)
        epoch = trial.num_epochs_done
        write_durably(_state_path(directory, epoch), trial.state(losses))
        seconds = time.perf_counter() - started
        report(Measurement(epoch=epoch, metrics=metrics, seconds=seconds, checkpoint=reference))
        _state_path(directory, epoch - 2).unlink(missing_ok=True)
        if epoch == config.epochs:
            return


def untrained(config: TrialConfig, data: Dataset, *, device: torch.device | None = None) -> dict[str, float]:
    """The measures of `evaluate_encoder` for the encoder that `config` would start from."""
    device = _default_device() if device is None else device
    return evaluate_encoder(build_model(config.encoder, config.seed).to(device), data, config, device=device)


def _default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _state_path(directory: Path, epoch: int) -> Path:
    return directory / f"state-{epoch:05d}.pt"


def _measure(
    trial: "_Trial", losses: dict[str, float], directory: Path
) -> tuple[dict[str, float], CheckpointReference | None]:
    """The epoch's metrics, and after the last one the checkpoint."""
    config, data = trial.config, trial.data
    features = extract_features(trial.model, data, trial.device)
    if trial.num_epochs_done < config.epochs:
        return {**losses, **knn_metrics(features, config)}, None
    probe = fit_probe(features, data, config)
    measures = evaluate_encoder(
        trial.model, data, config, device=trial.device, features=features, probe=probe
    )
    metrics = {**losses, **measures}
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
    info_nce: Tensor
    equivariance: Tensor

    def stacked(self) -> Tensor:
        return torch.stack([self.loss, self.info_nce, self.equivariance]).detach()


class _Trial:
    """A model in training: weights, optimiser, and how many epochs are done."""

    def __init__(self, config: TrialConfig, data: Dataset, device: torch.device) -> None:
        self.config, self.data, self.device = config, data, device
        self.num_steps = len(data.train.labels) // config.batch_size  # of an epoch
        if self.num_steps == 0:
            raise DatasetError(
                f"dataset {data.name!r} has {len(data.train.labels)} train images, fewer than batch_size "
                f"{config.batch_size}: use a smaller batch_size or more images"
            )
        self.images = data.train.images.to(device)
        self.model = build_model(config.encoder, config.seed).to(device)
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
        means = (total / self.num_steps).tolist()
        return dict(zip(("train_loss", "train_info_nce", "train_equivariance"), means, strict=True))

    def _draw_views(self, epoch: int) -> list[ViewParameters]:
        """The epoch's augmentations: two groups with one for each image, and two with one for each split."""
        config, size, strength = self.config, self.data.image_size, self.config.augmentation_strength
        num_images, num_splits = self.num_steps * config.batch_size, self.num_steps * config.num_splits
        source = generator(config.seed, "views", epoch)
        groups = [draw_views(num_images, size, strength, source) for _ in range(2)]
        if config.equivariance_weight > 0:
            source = generator(config.seed, "shared views", epoch)
            groups += [draw_shared_views(num_images, num_splits, size, strength, source) for _ in range(2)]
        return groups

    def _step(self, images: Tensor, view_groups: list[ViewParameters], step: int) -> Tensor:
        """One step of the optimiser; the losses (total, InfoNCE, equivariance), still on the device."""
        views = torch.cat([apply_views(images, parameters) for parameters in view_groups])
        views = normalise(views, self.data.mean, self.data.std)
        embeddings_VBD = self.model(views, len(view_groups)).chunk(len(view_groups))
        losses = self._objective(embeddings_VBD)
        self.optimizer.zero_grad()
        losses.loss.backward()  # type: ignore[no-untyped-call]
        self._refuse_divergence(losses, step)
        self._set_learning_rate(step)
        self.optimizer.step()
        return losses.stacked()

    def _objective(self, embeddings_VBD: Sequence[Tensor]) -> _Losses:
        z1_BD, z2_BD, *shared_BD = embeddings_VBD
        contrast = info_nce(z1_BD, z2_BD, self.config.temperature)
        if self.config.equivariance_weight == 0:
            return _Losses(contrast, contrast, torch.zeros_like(contrast))
        equivariance = orthogonal_equivariance(shared_BD[0], shared_BD[1], self.config.num_splits)
        return _Losses(contrast + self.config.equivariance_weight * equivariance, contrast, equivariance)

    def _refuse_divergence(self, losses: _Losses, step: int) -> None:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(losses.loss + norm):
            loss, contrast, equivariance = losses.stacked().tolist()
            raise TrialDiverged(
                f"not finite in epoch {self.num_epochs_done + 1}, step {step + 1} of {self.num_steps}: "
                f"loss {loss:g}, InfoNCE {contrast:g}, equivariance {equivariance:g}, "
                f"gradient norm {norm.item():g}; a lower learning_rate or a higher temperature may help"
            )

    def _set_learning_rate(self, step: int) -> None:
        rate = _learning_rate(self.config, self.num_epochs_done * self.num_steps + step, self.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    # --- the state ------------------------------------------------------------------------------------------

    def state(self, losses: dict[str, float]) -> bytes:
        """All that training needs to go on after this epoch, for `restore`."""
        buffer = io.BytesIO()
        torch.save(
            {
                **self._identity(),
                "num_epochs_done": self.num_epochs_done,
                "losses": losses,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            },
            buffer,
        )
        return buffer.getvalue()

    def restore(self, path: Path) -> dict[str, float]:
        """Go on where the state stands; its epoch's losses.

        Raises:
            CheckpointError: the state is damaged, or of another configuration or other images.
        """
        try:
            state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
            identity = {key: state[key] for key in self._identity()}
        except Exception as error:  # what torch.load raises for a damaged file is not documented
            raise CheckpointError(f"{path}: no readable training state ({error}); train anew") from error
        if identity != self._identity():
            raise CheckpointError(f"{path}: the state of another configuration or dataset; train anew")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.num_epochs_done = state["num_epochs_done"]
        losses: dict[str, float] = state["losses"]
        return losses

    def _identity(self) -> dict[str, str]:
        return {"config": self.config.model_dump_json(), "fingerprint": self.data.fingerprint}


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
