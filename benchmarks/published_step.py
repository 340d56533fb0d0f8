"""What is a step of the published recipe, with all that it costs?

Rebuilt from its description, not copied: the authors' code (Sharut/CARE) is where the structure was read.
What makes it slow is kept on purpose, since this is what others are measured against:

- two views of an image are made by PIL in workers of a loader, which hands over the plain image too;
- the two shared views are made on the host, in the training process, by torchvision's transforms of one
  image, brought to all images of all splits by two nested `vmap`s (so a whole batch shares one pair);
- four forwards in float32, and the features are brought to unit length though nothing reads them;
- masks of pairs are filled in Python loops, anew in every step, a whole one for each split;
- the host asks for five numbers after each step; cuDNN is held to deterministic algorithms.

Left out: the progress bar, and OpenCV, for whose 3x3 blur Pillow's stands here.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.functional import cosine_similarity, normalize
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms
from torchvision.models import resnet18, resnet50

__all__ = [
    "MEAN",
    "STD",
    "PlainModel",
    "PublishedStep",
    "contrast",
    "equivariance",
    "pil_views",
    "shared_views",
]

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
_BLUR_SIDE, _BLUR_PROBABILITY, _SIGMA = 3, 0.5, (0.1, 2.0)
_TEMPERATURE, _WEIGHT = 0.5, 0.03  # of the authors' script; the weight is on their scale
_NEVER = 10**9  # images until the loader ends


# --- the model ----------------------------------------------------------------------------------------------


class PlainModel(nn.Module):
    """torchvision's ResNet with the CIFAR stem, and the projector; answers features and embeddings."""

    def __init__(self, encoder: str) -> None:
        super().__init__()
        self.encoder, num_features = _encoder(encoder)
        self.projector = nn.Sequential(
            nn.Linear(num_features, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 128)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.encoder(images)
        return normalize(features), normalize(self.projector(features))


def _encoder(name: str) -> tuple[nn.Module, int]:
    if name == "resnet_tiny":
        from care_sweep.learn.encoder import build_encoder

        return build_encoder("resnet_tiny")
    network = {"resnet18": resnet18, "resnet50": resnet50}[name]()
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    num_features = network.fc.in_features
    network.fc = nn.Identity()
    return network, num_features


# --- views --------------------------------------------------------------------------------------------------


class _PilBlur:
    """A 3x3 Gaussian of half the images."""

    def __call__(self, image: Image.Image) -> Image.Image:
        if np.random.random_sample() >= _BLUR_PROBABILITY:
            return image
        low, high = _SIGMA
        side = math.exp(-0.5 / ((high - low) * np.random.random_sample() + low) ** 2)
        weights = [a * b for a in (side, 1, side) for b in (side, 1, side)]
        return image.filter(ImageFilter.Kernel((_BLUR_SIDE, _BLUR_SIDE), weights))


def _blurred(image: Tensor) -> Tensor:
    if np.random.random_sample() >= _BLUR_PROBABILITY:
        return image
    return transforms.GaussianBlur(_BLUR_SIDE, sigma=_SIGMA)(image)


def _geometry_and_colour(side: int) -> list[Callable[[Any], Any]]:
    return [
        transforms.RandomResizedCrop(side),
        transforms.RandomHorizontalFlip(),
        transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        transforms.RandomGrayscale(p=0.2),
    ]


def pil_views(side: int) -> Callable[[Image.Image], Tensor]:
    """One view of a PIL image: a normalised tensor (3, side, side)."""
    return transforms.Compose(
        [*_geometry_and_colour(side), _PilBlur(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )


def shared_views(images: Tensor, num_splits: int) -> tuple[Tensor, Tensor]:
    """Two views (B, 3, H, W) of images in [0, 1] on the host, each of one augmentation."""
    changes = [*_geometry_and_colour(images.shape[-1]), _blurred, transforms.Normalize(MEAN, STD)]

    def of_split(split: Tensor) -> tuple[Tensor, Tensor]:
        first, second = split.clone(), split.clone()
        for change in changes:
            first = vmap(change, randomness="same")(first)
            second = vmap(change, randomness="same")(second)
        return first, second

    splits = torch.stack(images.chunk(num_splits))
    first, second = vmap(of_split, randomness="same")(splits)
    return first.flatten(0, 1), second.flatten(0, 1)


class _Pairs(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """The plain image and two views of each of the images uint8 (N, 3, H, W)."""

    def __init__(self, images: Tensor) -> None:
        self._pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        self._plain, self._view = transforms.ToTensor(), pil_views(images.shape[-1])

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor, Tensor]:
        image = Image.fromarray(self._pixels[row])
        first, second = self._view(image), self._view(image)
        return self._plain(image), first, second


# --- losses -------------------------------------------------------------------------------------------------


def _other_images(num_images: int) -> Tensor:
    """(2B, 2B), false where both views are of one image."""
    mask = torch.ones(num_images, 2 * num_images, dtype=torch.bool)
    for row in range(num_images):
        mask[row, row] = False
        mask[row, row + num_images] = False
    return torch.cat([mask, mask])


def _off_diagonal(size: int) -> Tensor:
    mask = torch.ones(size, size, dtype=torch.bool)
    for row in range(size):
        mask[row, row] = False
    return mask


def contrast(z1: Tensor, z2: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """InfoNCE, and its two terms, which are computed whether they are trained or not."""
    num_images, z = len(z1), torch.cat([z1, z2])
    similarity = torch.exp(z @ z.t().contiguous() / temperature)
    mask = _other_images(num_images).to(z.device)
    negatives = similarity.masked_select(mask).view(2 * num_images, -1).sum(1)
    positive = torch.exp((z1 * z2).sum(1) / temperature).repeat(2)
    info_nce = -torch.log(positive / (positive + negatives)).mean()
    return info_nce, -torch.log(positive).mean(), torch.log(negatives).mean()


def equivariance(z1: Tensor, z2: Tensor, num_splits: int) -> Tensor:
    """On the published scale: 2 mean_i sum_{j != i} of the squared difference, averaged over splits."""
    total = torch.zeros((), device=z1.device)
    for first, second in zip(z1.chunk(num_splits), z2.chunk(num_splits), strict=True):
        grams = [z @ z.t().contiguous() for z in (first, second)]
        mask = _off_diagonal(len(first)).to(z1.device)
        pairs = [gram.masked_select(mask).view(len(first), -1) for gram in grams]
        total = total + 2 * torch.linalg.vector_norm(pairs[0] - pairs[1], dim=1).pow(2).mean()
    return total / num_splits


def _similarities(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cosines of positive pairs, and of all pairs, for the log."""
    z1, z2 = z1.detach(), z2.detach()
    z = normalize(torch.cat([z1, z2]))
    return cosine_similarity(z1, z2).mean(), (z @ z.T).mean()


@contextmanager
def _deterministic_cudnn() -> Iterator[None]:
    """As the authors set it with the seed; others are not to be slowed by it."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


# --- the step -----------------------------------------------------------------------------------------------


class PublishedStep:
    """The published recipe in training: ResNet with CIFAR stem, InfoNCE and L_equi, Adam at 1e-3.

    Args:
        images: uint8 (N, 3, H, W), H = W, to draw batches from.
    """

    def __init__(
        self,
        encoder: str,
        images: Tensor,
        *,
        batch_size: int,
        num_splits: int,
        device: torch.device,
        num_workers: int,
    ) -> None:
        self.model = PlainModel(encoder).to(device)
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, weight_decay=1e-6)
        self._num_splits, self._device, self.num_workers = num_splits, device, num_workers
        pairs = _Pairs(images)
        self.loader = DataLoader(
            pairs,
            batch_size,
            sampler=RandomSampler(pairs, replacement=True, num_samples=_NEVER),
            num_workers=num_workers,
            pin_memory=device.type == "cuda",
            drop_last=True,
        )
        self.shared_views_seconds = 0.0
        """Time that the shared views have taken, all steps together."""

    def take(self, batch: tuple[Tensor, Tensor, Tensor]) -> list[float]:
        """One step of the optimiser: loss, InfoNCE, L_equi, and the two mean cosines."""
        with _deterministic_cudnn():
            return self._take(batch)

    def _take(self, batch: tuple[Tensor, Tensor, Tensor]) -> list[float]:
        plain, *own = batch
        z1, z2 = (self._embed(views) for views in own)
        info_nce, _, _ = contrast(z1, z2, _TEMPERATURE)
        started = time.perf_counter()
        shared = shared_views(plain, self._num_splits)
        self.shared_views_seconds += time.perf_counter() - started
        y1, y2 = (self._embed(views) for views in shared)
        equi = equivariance(y1, y2, self._num_splits)
        loss = info_nce + _WEIGHT * equi
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        told = (loss, info_nce, equi, *_similarities(z1, z2))
        return [value.item() for value in told]

    def _embed(self, views: Tensor) -> Tensor:
        embeddings: Tensor = self.model(views.to(self._device, torch.float, non_blocking=True))[1]
        return embeddings
