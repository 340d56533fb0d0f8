"""What do the processes that train one trial together tell each other within a step?

Shape suffixes: R ranks, V view groups, B images of a batch, b = B / R images of a rank.

Each rank embeds its share of a batch. What depends on the whole batch is computed of what all have: the
statistics of batch normalisation and the losses. Every rank then holds the same loss, and the gradients that
flow back to a rank from the losses of all are added up; so the mean of the ranks' gradients is the gradient
of the loss, as one device would have it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from care_sweep.errors import RankLost

__all__ = ["Ranks"]


@dataclass(frozen=True)
class Ranks:
    """One of `number` processes of torch's default group; `rank` counts them from 0.

    All must call the same methods in the same order. Each raises RankLost where another does not take part.
    """

    rank: int
    number: int

    def share(self, batch_size: int) -> slice:
        """The rows of a batch that are this rank's."""
        size = batch_size // self.number
        return slice(self.rank * size, (self.rank + 1) * size)

    def stacked(self, own: Tensor) -> Tensor:
        """(R, ...): what each rank has, with gradient."""
        stacked: Tensor = _Stacked.apply(own, self)
        return stacked

    def gathered(self, own: Tensor, num_groups: int) -> Tensor:
        """(V * B, D), group after group, of the ranks' (V * b, D), with gradient."""
        of_groups_RVbD = self.stacked(own.view(num_groups, -1, own.shape[1]))
        return of_groups_RVbD.transpose(0, 1).reshape(-1, own.shape[1])

    def pooled(self, variance: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """The biased variance and the mean of what all ranks have, from those of what this one has."""
        variance_R, mean_R = self.stacked(torch.stack([variance, mean])).unbind(1)
        mean = mean_R.mean(0)
        return (variance_R + (mean_R - mean).square()).mean(0), mean

    def average(self, gradients: Sequence[Tensor]) -> None:
        """Make each gradient the mean of the ranks'."""
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        _together(dist.all_reduce, flat)
        flat /= self.number
        pieces = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view(gradient.shape))

    def of_the_first(self, tensor: Tensor) -> None:
        """Make the tensor what rank 0 has."""
        _together(dist.broadcast, tensor, 0)


class _Stacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, ranks: Ranks) -> Tensor:
        ctx.rank = ranks.rank
        stacked = own.new_empty(ranks.number, *own.shape)
        _together(dist.all_gather, list(stacked), own.contiguous())
        return stacked

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        _together(dist.all_reduce, total)
        return total[ctx.rank], None


def _together(collective: Callable[..., Any], *arguments: Any) -> None:
    try:
        collective(*arguments)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RankLost(f"the processes of a trial no longer hear each other: {error}") from error
