"""How is a trial of ours driven on its own, an epoch at a time, without files and without measures?"""

import time

import torch
from side_by_side import Turn, synchronise

from care_sweep.learn.data import Dataset, Split
from care_sweep.learn.train import epochs_alone
from care_sweep.spec import TrialConfig

__all__ = ["NUM_SPLITS", "OurTrial", "num_splits_for", "our_config", "random_dataset", "random_images"]

NUM_SPLITS = 16  # published, with 256 images
_CHANNEL_MEAN, _CHANNEL_STD = (0.5, 0.5, 0.5), (0.29, 0.29, 0.29)  # of random bytes


def random_images(num_images: int, side: int) -> torch.Tensor:
    """uint8 (N, 3, side, side)."""
    source = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num_images, 3, side, side), dtype=torch.uint8, generator=source)


def num_splits_for(batch_size: int) -> int:
    """16, or of small batches as many splits of 2 images or more as divide them."""
    return max(s for s in range(1, NUM_SPLITS + 1) if batch_size % s == 0 and batch_size >= 2 * s)


def our_config(encoder: str, batch_size: int, precision: str) -> TrialConfig:
    """A CARE trial as published, but for these."""
    changes = {"encoder": encoder, "batch_size": batch_size, "num_splits": num_splits_for(batch_size)}
    return TrialConfig.model_validate({**changes, "precision": precision})


class OurTrial:
    """A trial that has done its first epoch, in which it compiles and captures; a turn is an epoch.

    Args:
        images: uint8 (N, 3, h, w); N is a multiple of `batch_size`, an epoch has N / batch_size steps.
        precision: `auto`, `float32` or `bfloat16`.
    """

    def __init__(
        self, encoder: str, images: torch.Tensor, *, batch_size: int, device: torch.device, precision: str
    ) -> None:
        config = our_config(encoder, batch_size, precision)
        self._device, self.num_steps = device, len(images) // batch_size
        self._num_images = self.num_steps * batch_size
        self._epochs = epochs_alone(config, random_dataset(images), device=device)
        next(self._epochs)

    def turn(self) -> Turn:
        synchronise(self._device)
        started = time.perf_counter()
        next(self._epochs)
        synchronise(self._device)
        return Turn(self._num_images, time.perf_counter() - started)


def random_dataset(images: torch.Tensor) -> Dataset:
    """One whose splits are the same images; nothing that is timed reads another than train."""
    split = Split(images, torch.arange(len(images)) % 10)
    names = tuple(map(str, range(10)))
    return Dataset("random", names, split, split, split, "random", _CHANNEL_MEAN, _CHANNEL_STD)
