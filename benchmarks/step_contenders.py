"""Which ways of taking a training step are there? The published one, a cheap one and ours, each on its own.

All train CARE on SimCLR: a ResNet, four views an image, InfoNCE and L_equi, Adam. A turn's part is the
augmentation: of the published step what its process waits for the loader and takes for the shared views,
of the others a step's views made alone, after the turn.
"""

import time
from collections.abc import Callable
from itertools import islice
from typing import Protocol

import torch
from our_trial import OurTrial, num_splits_for
from published_step import MEAN, STD, PlainModel, PublishedStep
from side_by_side import Turn, synchronise
from torch import Tensor
from torchvision.transforms import v2

from care_sweep.learn.objective import info_nce, orthogonal_equivariance
from care_sweep.learn.randomness import generator
from care_sweep.learn.views import ViewParameters, apply_views, draw_shared_views, draw_views, normalise
from care_sweep.spec import TrialConfig

__all__ = ["Cheap", "Ours", "Published", "StepContender", "batched_transform", "compiled_views", "our_views"]

_FEW_STEPS = 2
_VIEWS_ALONE = 3  # times that a step's views are made after a turn
_DEFAULTS = TrialConfig()


class StepContender(Protocol):
    def turn(self) -> Turn: ...

    def few_steps(self) -> int:
        """Take some steps, to be looked at; how many they were."""


# --- published ----------------------------------------------------------------------------------------------


class Published:
    """The recipe as its authors run it.

    The first steps of a turn, one for each worker of the loader, are not timed: only then is the queue of
    batches as full as it stays. A turn ends after its steps or its seconds, whichever is first.
    """

    def __init__(
        self,
        encoder: str,
        images: Tensor,
        *,
        batch_size: int,
        num_steps: int,
        turn_seconds: float,
        device: torch.device,
        num_workers: int,
    ) -> None:
        self._step = PublishedStep(
            encoder,
            images,
            batch_size=batch_size,
            num_splits=num_splits_for(batch_size),
            device=device,
            num_workers=num_workers,
        )
        self._batch_size, self._num_steps, self._turn_seconds = batch_size, num_steps, turn_seconds

    def turn(self) -> Turn:
        begun = time.perf_counter()
        batches, taken = iter(self._step.loader), 0
        for batch in islice(batches, self._step.num_workers):
            self._step.take(batch)
        started, shared_before, waited = time.perf_counter(), self._step.shared_views_seconds, 0.0
        while taken == 0 or (taken < self._num_steps and time.perf_counter() - begun < self._turn_seconds):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            self._step.take(batch)
            taken += 1
        seconds = time.perf_counter() - started
        shared = self._step.shared_views_seconds - shared_before
        return Turn(taken * self._batch_size, seconds, waited + shared)

    def few_steps(self) -> int:
        for batch in islice(self._step.loader, _FEW_STEPS):
            self._step.take(batch)
        return _FEW_STEPS


# --- cheap --------------------------------------------------------------------------------------------------


def batched_transform(side: int) -> v2.Transform:
    """torchvision's v2 transforms of a uint8 batch, which draw once for all its images."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(side, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(3, sigma=(0.1, 2.0))], p=0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


class Cheap:
    """What half an hour makes of it: all on the device, one forward of all views, eager, channels last.

    Batched v2 transforms give all images of a batch one augmentation: less work than the method asks for.
    """

    def __init__(
        self,
        encoder: str,
        images: Tensor,
        *,
        batch_size: int,
        num_steps: int,
        device: torch.device,
        is_bfloat16: bool,
    ) -> None:
        self._images, self._device = images.to(device), device
        self._batch_size, self._num_steps, self._is_bfloat16 = batch_size, num_steps, is_bfloat16
        self._num_splits = num_splits_for(batch_size)
        self._model = PlainModel(encoder).to(device, memory_format=torch.channels_last)
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=1e-3, weight_decay=1e-6)
        self._transform = batched_transform(images.shape[-1])
        self._take()

    def turn(self) -> Turn:
        started = _now(self._device)
        for _ in range(self._num_steps):
            self._take()
        done = _now(self._device)
        for _ in range(_VIEWS_ALONE):
            self._views()
        part = (_now(self._device) - done) / _VIEWS_ALONE * self._num_steps
        return Turn(self._num_steps * self._batch_size, done - started, part)

    def few_steps(self) -> int:
        for _ in range(_FEW_STEPS):
            self._take()
        return _FEW_STEPS

    def _views(self) -> Tensor:
        rows = torch.randint(len(self._images), (self._batch_size,), device=self._device)
        images = self._images[rows]
        return torch.cat([self._transform(images) for _ in range(4)])

    def _take(self) -> None:
        views = self._views()
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._is_bfloat16):
            embeddings = self._model(views)[1]
        z1, z2, y1, y2 = embeddings.float().chunk(4)
        equivariance = orthogonal_equivariance(y1, y2, self._num_splits)
        loss = info_nce(z1, z2, _DEFAULTS.temperature) + _DEFAULTS.equivariance_weight * equivariance
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()


# --- ours ---------------------------------------------------------------------------------------------------


class Ours:
    """A trial of this package; a turn is an epoch.

    On a GPU its views alone are made as in a captured step: compiled, of parameters that are there already.
    """

    def __init__(
        self, encoder: str, images: Tensor, *, batch_size: int, device: torch.device, precision: str
    ) -> None:
        self._trial = OurTrial(encoder, images, batch_size=batch_size, device=device, precision=precision)
        batch, self._device = images[:batch_size].to(device), device
        self._make = compiled_views(batch) if device.type == "cuda" else lambda: our_views(batch)
        self._make()

    def turn(self) -> Turn:
        turn = self._trial.turn()
        started = _now(self._device)
        for _ in range(_VIEWS_ALONE):
            self._make()
        seconds = (_now(self._device) - started) / _VIEWS_ALONE
        return Turn(turn.amount, turn.seconds, seconds * self._trial.num_steps)

    def few_steps(self) -> int:
        self._trial.turn()
        return self._trial.num_steps


def our_views(images: Tensor) -> Tensor:
    """The four views (4B, 3, h, w) of a step, drawn and made."""
    return normalise(torch.cat([apply_views(images, p) for p in _drawn(images)]), MEAN, STD)


def compiled_views(images: Tensor) -> Callable[[], Tensor]:
    """What makes the four views of a step on the images' device, of parameters that are there."""
    from care_sweep.learn.captured import _compiled, _make_views
    from care_sweep.learn.dense_views import PackedViews

    rows = torch.arange(len(images))
    parameters = PackedViews(
        *(field.to(images.device) for field in PackedViews.of(_drawn(images)).rows(rows))
    )
    mean, std = (torch.tensor(one, device=images.device).view(3, 1, 1) for one in (MEAN, STD))
    rows = rows.to(images.device)

    @torch.no_grad()
    def make() -> Tensor:
        views: Tensor = _compiled(_make_views)(images, rows, parameters, mean, std)
        return views

    return make


def _drawn(images: Tensor) -> list[ViewParameters]:
    """Two groups of one augmentation an image, and two of one a split."""
    num_images, size = len(images), (images.shape[-2], images.shape[-1])
    source, num_splits = generator(0, "views"), num_splits_for(num_images)
    own = [draw_views(num_images, size, 1.0, source) for _ in range(2)]
    return own + [draw_shared_views(num_images, num_splits, size, 1.0, source) for _ in range(2)]


def _now(device: torch.device) -> float:
    """Seconds on the host's clock when the device is done."""
    synchronise(device)
    return time.perf_counter()
