"""Which contrastive method does a trial build on, and what must that method remember from step to step?

Shape suffixes: B images of a batch, D dimensions, K keys in a queue.

A base turns two views of the same images into the contrastive part of the loss. It says how many of the two
views the trained model embeds; what it holds beside the model (MoCo's key encoder and queue) is its state.
"""

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim.swa_utils import get_ema_multi_avg_fn

from care_sweep.learn.encoder import EMBEDDING_DIMENSIONS, CareModel
from care_sweep.learn.objective import (
    alignment,
    at_least_single,
    barlow_twins,
    info_nce,
    queue_info_nce,
    uniformity,
)
from care_sweep.learn.randomness import generator
from care_sweep.learn.ranks import Ranks
from care_sweep.spec import TrialConfig

__all__ = ["Base", "build_base"]

ContrastName = Literal["info_nce", "alignment", "uniformity", "barlow_twins"]


class Base(nn.Module):
    """The contrastive part of a step.

    Attributes:
        contrast: what its loss is called in the metrics; None where there is no contrastive part.
        num_embedded: view groups that the trained model embeds for it.
        num_held: view groups that it embeds itself, without gradient. Both are 0 without a contrastive part.
        settings: names of the attributes that its loss is computed with, numbers at first.
    """

    contrast: ContrastName | None
    num_embedded: int
    num_held: int
    settings: tuple[str, ...] = ("temperature",)

    def forward(self, outputs: Sequence[Tensor], held_views: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            outputs: the projector's outputs (B, D), not yet of unit length, of the `num_embedded` groups.
            held_views: the normalised images of the `num_held` groups; where ranks share a batch, the own.
        """
        raise NotImplementedError

    def follow(self, model: CareModel) -> None:
        """Hear that the optimiser has moved the model."""

    def settings_to_device(self, device: torch.device) -> None:
        """Make scalars there of its settings: one compiled step then serves trials of other settings."""
        for name in self.settings:
            setattr(self, name, torch.tensor(getattr(self, name), device=device))


def build_base(config: TrialConfig, model: CareModel, ranks: Ranks | None = None) -> Base:
    """The base of a trial, with its state on the model's device."""
    base: Base
    if config.objective == "none":
        base = NoContrast()
    elif config.base == "moco":
        base = MoCo(config, model, ranks)
    elif config.base == "barlow_twins":
        base = BarlowTwins(config)
    else:
        base = SimCLR(config)
    return base.to(next(model.parameters()).device)


class NoContrast(Base):
    """L_equi alone: no view is drawn for a contrastive part."""

    contrast, num_embedded, num_held = None, 0, 0
    settings = ()

    nothing: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("nothing", torch.zeros(()), persistent=False)

    def forward(self, outputs: Sequence[Tensor], held_views: Tensor) -> Tensor:
        return self.nothing


class SimCLR(Base):
    """InfoNCE between the two views of a batch, or one of its two terms (Section 5.2)."""

    num_embedded, num_held = 2, 0

    temperature: float | Tensor

    def __init__(self, config: TrialConfig) -> None:
        super().__init__()
        self.temperature = config.temperature
        if config.objective == "alignment":
            self.contrast, self._loss = "alignment", alignment
        elif config.objective == "uniformity":
            self.contrast, self._loss = "uniformity", uniformity
        else:
            self.contrast, self._loss = "info_nce", info_nce

    def forward(self, outputs: Sequence[Tensor], held_views: Tensor) -> Tensor:
        z1_BD, z2_BD = map(normalize, outputs)
        return self._loss(z1_BD, z2_BD, self.temperature)


class BarlowTwins(Base):
    """The cross-correlation of the two views' outputs, which are not brought to unit length for it."""

    contrast, num_embedded, num_held = "barlow_twins", 2, 0
    settings = ("redundancy_weight",)

    redundancy_weight: float | Tensor

    def __init__(self, config: TrialConfig) -> None:
        super().__init__()
        self.redundancy_weight = config.redundancy_weight

    def forward(self, outputs: Sequence[Tensor], held_views: Tensor) -> Tensor:
        return barlow_twins(outputs[0], outputs[1], self.redundancy_weight)


class MoCo(Base):
    """MoCo-v2: queries of the first view, keys of the second by a slow copy of the model, a queue.

    Order of a step as published (He et al., arXiv 1911.05722, Algorithm 1; v2: arXiv 2003.04297): the loss is
    taken against the queue before this step's keys enter it, and the key encoder has followed the weights
    that the query encoder has now. Its BatchNorm statistics are its own. They are of the whole batch, on
    however many devices it is, so there is no shuffling of images among devices before BatchNorm. The queue
    need not be a multiple of the batch.

    The state: `key_model`, `queue` (K, D), and `oldest`, the row of the queue that is overwritten next.
    """

    contrast, num_embedded, num_held = "info_nce", 1, 1

    temperature: float | Tensor
    queue: Tensor
    oldest: Tensor

    def __init__(self, config: TrialConfig, model: CareModel, ranks: Ranks | None) -> None:
        super().__init__()
        self.temperature, self._ranks = config.temperature, ranks
        self._average = get_ema_multi_avg_fn(config.key_encoder_momentum)  # type: ignore[no-untyped-call]
        self.key_model = copy.deepcopy(model).requires_grad_(False).train()
        random_KD = torch.randn(
            config.queue_size, EMBEDDING_DIMENSIONS, generator=generator(config.seed, "queue")
        )
        self.register_buffer("queue", normalize(random_KD))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.int64))
        self._keys_BD: Tensor | None = None

    def forward(self, outputs: Sequence[Tensor], held_views: Tensor) -> Tensor:
        with torch.no_grad():
            self._keys_BD = normalize(self._key_outputs(held_views))
        return queue_info_nce(normalize(outputs[0]), self._keys_BD, self.queue, self.temperature)

    def _key_outputs(self, held_views: Tensor) -> Tensor:
        if self._ranks is None:
            return at_least_single(self.key_model.outputs(held_views))
        with self.key_model.view_groups(1, self._ranks):
            return self._ranks.gathered(at_least_single(self.key_model.outputs(held_views)), 1)

    @torch.no_grad()
    def follow(self, model: CareModel) -> None:
        """Move the key encoder a little towards the model, and the step's keys into the queue."""
        self._average(list(self.key_model.parameters()), list(model.parameters()), 0)
        assert self._keys_BD is not None, "a step takes its loss before it moves the model"
        rows_B = (self.oldest + torch.arange(len(self._keys_BD), device=self.queue.device)) % len(self.queue)
        self.queue.index_copy_(0, rows_B, self._keys_BD.to(self.queue.dtype))
        self.oldest.copy_((self.oldest + len(self._keys_BD)) % len(self.queue))
        self._keys_BD = None
