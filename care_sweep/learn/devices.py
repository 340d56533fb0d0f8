"""May several devices share a trial, and what is another process told of its images?"""

import dataclasses
from typing import Self

import torch

from care_sweep.errors import InvalidDocument, Problem
from care_sweep.learn.data import Dataset, Split
from care_sweep.learn.ranks import Ranks
from care_sweep.spec import FIELDS_OF_DEVICES, TrialConfig, misfit_of_devices

__all__ = ["Outline", "refuse_misfits"]


def refuse_misfits(config: TrialConfig, num_devices: int, device: torch.device) -> None:
    """Refuse a configuration that is not for so many devices.

    Raises:
        InvalidDocument: its batches cannot be shared equally, or its steps are to be compiled.
        ValueError: there are fewer GPUs from `device` on.
    """
    for name in FIELDS_OF_DEVICES:
        detail = misfit_of_devices(name, getattr(config, name), num_devices)
        if detail is not None:
            raise InvalidDocument([Problem(f"/{name}", detail)])
    if device.type == "cuda" and (device.index or 0) + num_devices > torch.cuda.device_count():
        raise ValueError(f"{num_devices} GPUs are to train a trial, {torch.cuda.device_count()} are there")


@dataclasses.dataclass(frozen=True)
class Outline:
    """A dataset without its images, and how many train images there are: little to pickle."""

    data: Dataset
    num_images: int

    @classmethod
    def of(cls, data: Dataset) -> Self:
        nothing = Split(data.train.images[:0].cpu(), data.train.labels[:0].cpu())
        emptied = dataclasses.replace(data, train=nothing, validation=nothing, test=nothing)
        return cls(emptied, len(data.train.images))

    def filled(self, ranks: Ranks, device: torch.device) -> Dataset:
        """With the train images, which rank 0 sends meanwhile; all labels are 0, training reads none."""
        nothing = self.data.train
        images = nothing.images.new_empty(self.num_images, *nothing.images.shape[1:], device=device)
        ranks.of_the_first(images)
        return dataclasses.replace(self.data, train=Split(images, nothing.labels.new_zeros(self.num_images)))
