"""What do the ranks of the tests do? A child imports it by name."""

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from care_sweep.learn.data import Dataset, Split
from care_sweep.learn.gang import Gang
from care_sweep.learn.ranks import Ranks
from care_sweep.learn.train import _Trial
from care_sweep.spec import TrialConfig

CPU = torch.device("cpu")
WAYS: dict[str, dict[str, Any]] = {
    "CARE": {},
    "SimCLR": {"equivariance_weight": 0.0},
    "a batch shares": {"augmentation_scope": "batch"},
    "joint statistics": {"batch_norm": "joint"},
    "joint statistics of SimCLR": {"batch_norm": "joint", "equivariance_weight": 0.0, "optimizer": "sgd"},
    "MoCo": {"base": "moco", "queue_size": 20},
    "Barlow Twins": {"base": "barlow_twins", "batch_norm": "joint"},
}


def two_epochs(
    change: dict[str, Any], data: Dataset, ranks: Ranks | None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """In float64, a step each: their losses, the first gradients, and the state after them."""
    told = {"encoder": "resnet_tiny", "batch_size": 12, "num_splits": 3, "schedule": "cosine", **change}
    trial = _Trial(TrialConfig.model_validate({**told, "epochs": 3, "warmup_epochs": 1}), data, CPU, ranks)
    trial.model.double().train()
    trial.base.double()
    trial.images = trial.images.double() / 255
    losses, gradients = [], torch.empty(0)
    for epoch in (1, 2):
        draws, rows = trial._draws(epoch), trial._rows(0)
        views, images = [group[rows] for group in draws.views], trial.images[draws.order[rows]]
        losses.append(trial._step(images, views, 0, draws.rates[0]))
        if epoch == 1:
            weights = trial.model.parameters()
            gradients = torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None])
    kept = {**trial.model.state_dict(), **{f"base.{k}": v for k, v in trial.base.state_dict().items()}}
    return torch.stack(losses), gradients, {name: value.clone() for name, value in kept.items()}


def differ(ranks: Ranks, found: tuple[Tensor, Tensor, dict[str, Tensor]]) -> bool:
    """Whether any bit of it is another on another rank."""
    losses, gradients, state = found
    for one in (losses, gradients, *state.values()):
        stacked = ranks.stacked(one.double())
        if not all(torch.equal(other, stacked[0]) for other in stacked):
            return True
    return False


def some_images(data: Dataset) -> Dataset:
    """One batch of twelve, others in each epoch."""
    return dataclasses.replace(data, train=Split(data.train.images[:20], data.train.labels[:20]))


def every_way(ranks: Ranks, device: torch.device, data: Dataset) -> Iterator[None]:
    """A way at each turn; then it hangs."""
    for change in WAYS.values():
        differ(ranks, two_epochs(change, data, ranks))
        yield
    time.sleep(1000)


def one_lacks_memory(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Of three ranks the last lacks memory within a step; the others wait for it."""
    ranks.stacked(torch.zeros(2))
    yield
    if ranks.rank == 2:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    ranks.stacked(torch.zeros(2))
    yield


def nothing(ranks: Ranks, device: torch.device) -> Iterator[None]:
    while True:
        yield


def main(pid_file: Path) -> None:
    """Say who works for this process, which then dies."""
    with Gang(2, CPU, nothing) as gang:
        gang.run(lambda: None)
        pid_file.write_text(str(gang._processes[0].pid))
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
