"""What maps images to features, and features to embeddings?

Shape suffixes: N images, F features, D dimensions of the projected embedding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, normalize, relu

from care_sweep.learn.convolutions import with_fewer_multiplications
from care_sweep.learn.objective import at_least_single
from care_sweep.learn.randomness import stream_seed
from care_sweep.learn.ranks import Ranks

__all__ = [
    "EMBEDDING_DIMENSIONS",
    "CareModel",
    "EncoderName",
    "Projector",
    "Stem",
    "build_encoder",
    "build_model",
]

EncoderName = Literal["resnet_tiny", "resnet18", "resnet50"]
Stem = Literal["cifar", "imagenet"]

EMBEDDING_DIMENSIONS = 128
_HIDDEN_DIMENSIONS = 512
_TINY_WIDTHS = (48, 96)


class _ByViewGroup(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation whose batch is one view group: a concatenated forward equals one forward a group.

    The published step runs four forwards, so each group has batch statistics of its own, and the running
    statistics move once a group, in order. Where several ranks train together, a group's statistics are those
    of all its images, on whatever rank they are.
    """

    num_view_groups: int = 1
    ranks: Ranks | None = None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the name is torch's)
        if self.training and self.ranks is not None:
            return self._all_groups_at_once(input)
        if not self.training or self.num_view_groups == 1:
            return super().forward(input)
        if torch.compiler.is_compiling():
            return self._all_groups_at_once(input)
        return torch.cat([super(_ByViewGroup, self).forward(g) for g in input.chunk(self.num_view_groups)])

    def _all_groups_at_once(self, input: Tensor) -> Tensor:  # noqa: A002
        """The same written out, in float32 or more: a compiler makes few passes of it, and ranks can pool
        their statistics."""
        num_groups = self.num_view_groups
        groups = at_least_single(input).view(num_groups, -1, *input.shape[1:])
        over = [1, *range(3, groups.ndim)]
        variance, mean = torch.var_mean(groups, over, correction=0, keepdim=True)
        num_values = groups[0].numel() // groups.shape[2]
        if self.ranks is not None:
            variance, mean = self.ranks.pooled(variance, mean)
            num_values *= self.ranks.number
        self._follow(mean.detach().view(num_groups, -1), variance.detach().view(num_groups, -1), num_values)
        shape = (-1, *[1] * (groups.ndim - 3))
        scale = self.weight.view(shape) * (variance + self.eps).rsqrt()
        normalised: Tensor = (groups - mean) * scale + self.bias.view(shape)
        return normalised.flatten(0, 1).to(input.dtype)

    def _follow(self, mean_GC: Tensor, variance_GC: Tensor, num_values: int) -> None:
        """Move the running statistics once a group, in order; each is of so many values."""
        assert self.running_mean is not None, "built with running statistics"
        assert self.running_var is not None, "built with running statistics"
        assert self.num_batches_tracked is not None, "built with running statistics"
        assert self.momentum is not None, "built with a momentum"
        for mean_C, variance_C in zip(mean_GC, variance_GC, strict=True):
            self.running_mean.lerp_(mean_C, self.momentum)
            self.running_var.lerp_(variance_C * (num_values / (num_values - 1)), self.momentum)
        self.num_batches_tracked.add_(len(mean_GC))


class _ImageNorm(_ByViewGroup, nn.BatchNorm2d):
    pass


class _VectorNorm(_ByViewGroup, nn.BatchNorm1d):
    pass


class _HalvingBlock(nn.Module):
    """A residual block that halves the sides; ResNet's basic block (He et al., 2016, Section 4.1)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
            _ImageNorm(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            _ImageNorm(after),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=2, bias=False), _ImageNorm(after))

    def forward(self, images: Tensor) -> Tensor:
        return relu(self.residual(images) + self.shortcut(images))


class TinyResNet(nn.Module):
    """A ResNet that learns 32 px images on one CPU thread in seconds: a patch stem and one residual block.

    Convolutions at 8x8 and more pixels cost the most, so the stem goes to 8x8 at once and the block to 4x4.
    Features are the 2x2 means of the block's channels: with so few layers, where something is tells much.
    """

    def __init__(self) -> None:
        super().__init__()
        before, after = _TINY_WIDTHS
        self.stem = nn.Sequential(
            nn.Conv2d(3, before, 6, stride=4, padding=1, bias=False), _ImageNorm(before), nn.ReLU()
        )
        self.block = _HalvingBlock(before, after)
        self.num_features = 4 * after
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        return adaptive_avg_pool2d(self.block(self.stem(images)), 2).flatten(1)


class Projector(nn.Sequential):
    """Linear(F, 512, no bias), BatchNorm, ReLU, Linear(512, 128), as published."""

    def __init__(self, num_features: int) -> None:
        super().__init__(
            nn.Linear(num_features, _HIDDEN_DIMENSIONS, bias=False),
            _VectorNorm(_HIDDEN_DIMENSIONS),
            nn.ReLU(),
            nn.Linear(_HIDDEN_DIMENSIONS, EMBEDDING_DIMENSIONS),
        )


class CareModel(nn.Module):
    """Encoder and projector; what is trained."""

    def __init__(self, encoder: nn.Module, num_features: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = Projector(num_features)
        self.num_features = num_features

    def forward(self, images: Tensor, num_view_groups: int = 1) -> Tensor:
        """Unit embeddings (N, D) of normalised images; in training each view group is a batch of its own.

        Raises:
            ValueError: N is not a multiple of `num_view_groups`.
        """
        return normalize(self.project(images, num_view_groups))

    def project(self, images: Tensor, num_view_groups: int = 1) -> Tensor:
        """As `forward`, before the rows are brought to unit length."""
        if len(images) % num_view_groups:
            raise ValueError(f"{len(images)} views are not {num_view_groups} groups of equal size")
        with self.view_groups(num_view_groups):
            return self.outputs(images)

    def outputs(self, images: Tensor) -> Tensor:
        """The projector's outputs (N, D) of normalised images, in the view groups that are set."""
        outputs: Tensor = self.projector(self.encoder(images))
        return outputs

    @contextmanager
    def view_groups(self, number: int, ranks: Ranks | None = None) -> Iterator[None]:
        """In training, batch normalisation sees so many groups, of all ranks; whoever calls the encoder
        alone, one, of its own."""
        norms = [module for module in self.modules() if isinstance(module, _ByViewGroup)]
        try:
            for norm in norms:
                norm.num_view_groups, norm.ranks = number, ranks
            yield
        finally:
            for norm in norms:
                norm.num_view_groups, norm.ranks = 1, None


def build_encoder(name: EncoderName, stem: Stem = "cifar") -> tuple[nn.Module, int]:
    """An encoder from normalised images (N, 3, h, w) to features (N, F), and F.

    The ResNets are torchvision's. Stem `imagenet` is torchvision's too, a 7x7 convolution of stride 2 and
    max-pooling; stem `cifar` is for small images, a 3x3 convolution and no pooling. All is initialised from
    torch's global generator; `build_model` seeds it.

    Raises:
        ValueError: there is no encoder of that name, no such stem, or resnet_tiny is to have another stem.
    """
    if stem not in ("cifar", "imagenet"):
        raise ValueError(f"unknown stem {stem!r}; use cifar or imagenet")
    if name == "resnet_tiny":
        if stem != "cifar":
            raise ValueError(f"resnet_tiny has a stem of its own; use stem cifar, not {stem}")
        tiny = TinyResNet()
        return tiny, tiny.num_features
    from torchvision.models.resnet import (  # noqa: PLC0415  (its import takes longer than torch's)
        BasicBlock,
        Bottleneck,
        ResNet,
    )

    if name == "resnet18":
        network = ResNet(BasicBlock, [2, 2, 2, 2], norm_layer=_ImageNorm)
    elif name == "resnet50":
        network = ResNet(Bottleneck, [3, 4, 6, 3], norm_layer=_ImageNorm)
    else:
        raise ValueError(f"unknown encoder {name!r}; use resnet_tiny, resnet18 or resnet50")
    num_features = network.fc.in_features
    if stem == "cifar":
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    network.fc = nn.Identity()
    return network, num_features


def build_model(name: EncoderName, seed: int, stem: Stem = "cifar") -> CareModel:
    """Encoder and projector with initial weights that the seed alone determines.

    The global generator is as before afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "initialisation"))
        encoder, num_features = build_encoder(name, stem)
        model = CareModel(with_fewer_multiplications(encoder), num_features)
    return model.to(memory_format=torch.channels_last)  # a quarter faster on a CPU
