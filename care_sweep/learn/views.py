"""How is a view of an image made? Parameters are drawn on the host, then applied on the device.

Shape suffixes: N views, H and W pixels of a view, h and w pixels of the source image, T tries of a crop.

Drawing and applying are apart so that one augmentation can be shared by many images, and so that the same
parameters can be applied to other images of that size. Each operation equals torchvision's for float tensors
in [0, 1].

What is computed where: parameters, which view gets which operation, and the weights of each view's resize,
two matrices (N, H, h) and (N, W, w), are made on the host and copied to the device in every call; pixels stay
on the device. Nothing is read back from it, but the copies are from pageable memory, so that the host waits
until they have been read; at 224 px the matrices are most of them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

__all__ = [
    "BRIGHTNESS",
    "CONTRAST",
    "HUE",
    "SATURATION",
    "Strength",
    "ViewParameters",
    "apply_views",
    "blurred",
    "draw_shared_views",
    "draw_views",
    "gray",
    "hue_change",
    "normalise",
    "resize_matrix",
    "unit",
]

_RATIO = (3 / 4, 4 / 3)
_LEAST_CROP_SCALE = 0.08  # as published for 32 px, and torchvision's own
_NUM_TRIES = 10  # torchvision's RandomResizedCrop
_GRAY = (0.2989, 0.587, 0.114)  # torchvision's rgb_to_grayscale

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""What colour jitter does, in the numbering of `ViewParameters.order` and `factors`."""


@dataclass(frozen=True)
class Strength:
    """What `augmentation_strength` s means; s = 1 is the published setting, s = 0 only flips.

    Attributes:
        lowest_scale: least share of the image's area in a crop, 1 - s (1 - l) and not below l, where l is the
            least crop scale: 0.08 as published for CIFAR, 0.2 in the authors' code for ImageNet.
        jitter: brightness, contrast and saturation change by up to this factor, 0.4 s.
        hue: the hue moves by up to this share of the circle, 0.1 s.
        jitter_probability: 0.8, and 0 at s = 0.
        grayscale_probability: 0.2 s, at most 1.
        blur_probability: 0.5 s, at most 1.
    """

    lowest_scale: float
    jitter: float
    hue: float
    jitter_probability: float
    grayscale_probability: float
    blur_probability: float

    @classmethod
    def of(cls, s: float, least_crop_scale: float = _LEAST_CROP_SCALE) -> Self:
        """The mapping.

        Raises:
            ValueError: s is not in [0, 2], or the least crop scale not in (0, 1].
        """
        if not 0 <= s <= 2:
            raise ValueError(f"augmentation_strength must be in [0, 2], it is {s}")
        if not 0 < least_crop_scale <= 1:
            raise ValueError(f"least_crop_scale must be in (0, 1], it is {least_crop_scale}")
        return cls(
            lowest_scale=max(least_crop_scale, 1 - s * (1 - least_crop_scale)),
            jitter=0.4 * s,
            hue=0.1 * s,
            jitter_probability=0.8 if s > 0 else 0.0,
            grayscale_probability=min(1.0, 0.2 * s),
            blur_probability=min(1.0, 0.5 * s),
        )


@dataclass(frozen=True)
class ViewParameters:
    """What is done to each of N views; every field but `size` is a tensor on the host with N rows.

    Attributes:
        size: height and width in pixels of the images that it was drawn for.
        top, left, height, width: the crop in source pixels, int64.
        flip, jitter, grayscale, blur: whether it is done, bool.
        order: (N, 4), the order of brightness (0), contrast (1), saturation (2) and hue (3), int64.
        factors: (N, 4), their factors in that numbering; the hue's is a shift in [-0.5, 0.5].
        sigma: standard deviation of the 3x3 Gaussian blur in pixels.
    """

    size: tuple[int, int]
    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor
    jitter: Tensor
    order: Tensor
    factors: Tensor
    grayscale: Tensor
    blur: Tensor
    sigma: Tensor

    def __len__(self) -> int:
        return len(self.flip)

    def __getitem__(self, rows: slice | Tensor) -> "ViewParameters":
        return self._map(lambda field: field[rows])

    def repeated(self, times: int) -> "ViewParameters":
        """Each row `times` times in a row: one augmentation for all images of a split."""
        return self._map(lambda field: field.repeat_interleave(times, 0))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "ViewParameters":
        rows = [field.name for field in fields(self) if field.name != "size"]
        return ViewParameters(self.size, **{name: change(getattr(self, name)) for name in rows})


# --- drawing ------------------------------------------------------------------------------------------------


def draw_views(
    num_views: int,
    size: tuple[int, int],
    strength: float,
    generator: torch.Generator,
    least_crop_scale: float = _LEAST_CROP_SCALE,
) -> ViewParameters:
    """One augmentation for each of `num_views` views of images of `size` (height, width) pixels.

    How many numbers are drawn does not depend on the strength. Crops are torchvision's RandomResizedCrop; at
    strength 0 they are the whole image, which that would not give for images wider than 4/3 or higher.

    Raises:
        ValueError: the strength is not in [0, 2], or the least crop scale not in (0, 1].
    """
    amounts = Strength.of(strength, least_crop_scale)

    def uniform(*columns: int) -> Tensor:
        return torch.rand(num_views, *columns, generator=generator, dtype=torch.float64)

    top, left, height, width = _draw_crops(uniform, size, amounts.lowest_scale)
    if strength == 0:
        top, left = torch.zeros_like(top), torch.zeros_like(left)
        height, width = torch.full_like(height, size[0]), torch.full_like(width, size[1])
    spread = torch.tensor([amounts.jitter] * 3 + [amounts.hue], dtype=torch.float64)
    centre = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    lowest = torch.tensor([0.0, 0.0, 0.0, -0.5], dtype=torch.float64)
    low = torch.maximum(centre - spread, lowest)
    return ViewParameters(
        size=size,
        top=top,
        left=left,
        height=height,
        width=width,
        flip=uniform() < 0.5,
        jitter=uniform() < amounts.jitter_probability,
        order=uniform(4).argsort(1),
        factors=(low + uniform(4) * (centre + spread - low)).float(),
        grayscale=uniform() < amounts.grayscale_probability,
        blur=uniform() < amounts.blur_probability,
        sigma=(0.1 + 1.9 * uniform()).float(),
    )


def draw_shared_views(
    num_images: int,
    num_splits: int,
    size: tuple[int, int],
    strength: float,
    generator: torch.Generator,
    least_crop_scale: float = _LEAST_CROP_SCALE,
) -> ViewParameters:
    """One augmentation for each split, repeated for its `num_images / num_splits` images (Algorithm 1).

    Raises:
        ValueError: as `draw_views`, or the images cannot be cut into so many equal splits.
    """
    if num_splits < 1 or num_images % num_splits:
        raise ValueError(
            f"{num_images} images cannot share {num_splits} augmentations equally: use a divisor of "
            f"{num_images}"
        )
    drawn = draw_views(num_splits, size, strength, generator, least_crop_scale)
    return drawn.repeated(num_images // num_splits)


def _draw_crops(
    uniform: Callable[..., Tensor], size: tuple[int, int], lowest_scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The first of ten tries that fits into the image, or else the largest central crop of allowed ratio."""
    rows, columns = size
    area_NT = rows * columns * (lowest_scale + (1 - lowest_scale) * uniform(_NUM_TRIES))
    low, high = map(math.log, _RATIO)
    ratio_NT = torch.exp(low + (high - low) * uniform(_NUM_TRIES))
    width_NT = (area_NT * ratio_NT).sqrt().round().long()
    height_NT = (area_NT / ratio_NT).sqrt().round().long()
    fits_NT = (width_NT > 0) & (width_NT <= columns) & (height_NT > 0) & (height_NT <= rows)
    found, first = fits_NT.any(1), fits_NT.int().argmax(1, keepdim=True)
    most_height = min(rows, round(columns / _RATIO[0]))
    most_width = min(columns, round(rows * _RATIO[1]))
    height = torch.where(found, height_NT.gather(1, first)[:, 0], most_height)
    width = torch.where(found, width_NT.gather(1, first)[:, 0], most_width)
    top = torch.where(found, (uniform() * (rows - height + 1)).long(), (rows - height) // 2)
    left = torch.where(found, (uniform() * (columns - width + 1)).long(), (columns - width) // 2)
    return top, left, height, width


def hue_change(num_views: int, shift: float, size: tuple[int, int]) -> ViewParameters:
    """Parameters that move the hue by a share of the circle in [-0.5, 0.5] and change nothing else."""
    zero, none = torch.zeros(num_views, dtype=torch.int64), torch.zeros(num_views, dtype=torch.bool)
    rows, columns = size
    return ViewParameters(
        size=size,
        top=zero,
        left=zero,
        height=zero + rows,
        width=zero + columns,
        flip=none,
        jitter=~none,
        order=torch.arange(4).repeat(num_views, 1),
        factors=torch.tensor([1.0, 1.0, 1.0, shift]).repeat(num_views, 1),
        grayscale=none,
        blur=none,
        sigma=torch.ones(num_views),
    )


# --- applying -----------------------------------------------------------------------------------------------


def apply_views(images: Tensor, parameters: ViewParameters) -> Tensor:
    """The views, float in [0, 1], of the images' height and width.

    Args:
        images: (N, 3, h, w), uint8 or float in [0, 1]; row i is treated as row i of `parameters` says.

    Raises:
        ValueError: the images are not (N, 3, h, w) with N = len(parameters) and the size of the parameters.
    """
    if images.ndim != 4 or images.shape[1] != 3 or len(images) != len(parameters):
        raise ValueError(
            f"{len(parameters)} views need images of shape ({len(parameters)}, 3, h, w), "
            f"they are {tuple(images.shape)}"
        )
    if tuple(images.shape[-2:]) != tuple(parameters.size):
        raise ValueError(
            f"the views were drawn for images of {parameters.size[0]} x {parameters.size[1]} pixels, these "
            f"have {images.shape[-2]} x {images.shape[-1]}: draw them for this size"
        )
    views = _crop_and_flip(unit(images), parameters)
    _jitter(views, parameters)
    _change(views, parameters.grayscale, lambda chosen, _: gray(chosen).expand_as(chosen))
    _change(views, parameters.blur, blurred, parameters.sigma)
    return views


def unit(images: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1]; float images as they are."""
    return images if images.is_floating_point() else images.to(torch.float32) / 255


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images in [0, 1] (or uint8) with the channels' mean taken off and divided by their deviation."""
    pixels = unit(images)
    shift = torch.tensor(mean, dtype=pixels.dtype).view(3, 1, 1).to(pixels.device, non_blocking=True)
    scale = torch.tensor(std, dtype=pixels.dtype).view(3, 1, 1).to(pixels.device, non_blocking=True)
    return (pixels - shift) / scale


def _change(
    views: Tensor, where: Tensor, operation: Callable[[Tensor, Tensor], Tensor], amounts: Tensor | None = None
) -> None:
    """Replace the views that `where` names by what the operation makes of a copy, which it may overwrite."""
    rows = where.nonzero()[:, 0]
    if len(rows) == 0:
        return
    amounts = torch.zeros(len(where)) if amounts is None else amounts
    chosen = amounts[rows].to(views, non_blocking=True).view(-1, 1, 1, 1)
    rows = rows.to(views.device, non_blocking=True)
    views.index_copy_(0, rows, operation(views.index_select(0, rows), chosen))


def _crop_and_flip(images_N3hw: Tensor, parameters: ViewParameters) -> Tensor:
    """Crop, resize to the images' own size as torchvision's antialiased bilinear resize, flip."""
    rows, columns = images_N3hw.shape[-2:]
    vertical_NHh = resize_matrix(parameters.top, parameters.height, rows).to(images_N3hw, non_blocking=True)
    matrix_NWw = resize_matrix(parameters.left, parameters.width, columns)
    matrix_NWw = torch.where(parameters.flip.view(-1, 1, 1), matrix_NWw.flip(1), matrix_NWw)
    horizontal_NwW = matrix_NWw.mT.to(images_N3hw, non_blocking=True)
    wide_N3hW = torch.bmm(images_N3hw.flatten(1, 2), horizontal_NwW).view(-1, 3, rows, columns)
    return torch.matmul(vertical_NHh.unsqueeze(1), wide_N3hW)


def resize_matrix(start_N: Tensor, length_N: Tensor, size: int) -> Tensor:
    """The weights (N, size, size) of source pixels in the target pixels of a crop: torchvision's antialiased
    bilinear resize of `length` pixels from `start` on to `size` pixels, along one axis.

    They are a triangle as wide as a target pixel, not narrower than a source pixel, cut off at the crop's
    edge and scaled to sum 1.
    """
    pixel = torch.arange(size, dtype=torch.float32, device=start_N.device)
    scale_N11 = (length_N / size).view(-1, 1, 1)
    source_N1p = pixel - start_N.view(-1, 1, 1)
    centre_Np1 = (pixel.view(-1, 1) + 0.5) * scale_N11
    weight_Npp = 1 - (source_N1p + 0.5 - centre_Np1).abs() / scale_N11.clamp_min(1)
    outside_N1p = (source_N1p < 0) | (source_N1p >= length_N.view(-1, 1, 1))
    weight_Npp = weight_Npp.clamp_min_(0).masked_fill_(outside_N1p, 0)
    return weight_Npp / weight_Npp.sum(2, keepdim=True)


def _jitter(views: Tensor, parameters: ViewParameters) -> None:
    operations = {
        BRIGHTNESS: _brighten,
        CONTRAST: _contrast,
        SATURATION: _saturate,
        HUE: _shift_hue,
    }
    for place in range(len(operations)):
        for number, operation in operations.items():
            chosen = parameters.jitter & (parameters.order[:, place] == number)
            _change(views, chosen, operation, parameters.factors[:, number])


def gray(views: Tensor) -> Tensor:
    """Luminance (N, 1, H, W), as torchvision's rgb_to_grayscale."""
    red, green, blue = views.unsqueeze(2).unbind(1)
    return (red * _GRAY[0]).add_(green, alpha=_GRAY[1]).add_(blue, alpha=_GRAY[2])


def _brighten(views: Tensor, factor: Tensor) -> Tensor:
    return views.mul_(factor).clamp_(0, 1)


def _contrast(views: Tensor, factor: Tensor) -> Tensor:
    mean = gray(views).mean((2, 3), keepdim=True)
    return views.mul_(factor).add_(mean.mul_(1 - factor)).clamp_(0, 1)


def _saturate(views: Tensor, factor: Tensor) -> Tensor:
    grays = gray(views)
    return views.mul_(factor).add_(grays.mul_(1 - factor)).clamp_(0, 1)


def _shift_hue(views: Tensor, shift: Tensor) -> Tensor:
    """Move the hue by a share of the circle, as through HSV and back.

    The hue is in sixths of the circle; a channel is the least one plus the chroma times a trapezium of it.
    """
    red, green, blue = views.unbind(1)
    most = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = most - least
    is_red, is_green = most == red, most == green
    rise = torch.where(is_red, green - blue, torch.where(is_green, blue - red, red - green))
    begin = torch.where(is_red, 0.0, torch.where(is_green, 2.0, 4.0)).to(chroma)
    hue = rise.div_(chroma.clamp_min(torch.finfo(chroma.dtype).tiny)).add_(begin).add_(6 * shift[:, 0])
    hue.sub_((hue / 6).floor_().mul_(6))
    torch.sub((hue - 3).abs_(), 1, out=red)
    torch.sub(2, (hue - 2).abs_(), out=green)
    torch.sub(2, (hue - 4).abs_(), out=blue)
    return views.clamp_(0, 1).mul_(chroma.unsqueeze(1)).add_(least.unsqueeze(1))


def blurred(views: Tensor, sigma: Tensor) -> Tensor:
    """A 3x3 Gaussian of `sigma` (N, 1, 1, 1) pixels with reflected edges, as one pass down and one across."""
    side = torch.exp(-0.5 / sigma.square())
    middle, side = 1 / (1 + 2 * side), side / (1 + 2 * side)
    for axis in (2, 3):
        views = _three_taps(views, middle, side, axis)
    return views


def _three_taps(views: Tensor, middle: Tensor, side: Tensor, axis: int) -> Tensor:
    length = views.shape[axis]
    before = torch.cat([views.narrow(axis, 1, 1), views.narrow(axis, 0, length - 1)], axis)
    after = torch.cat([views.narrow(axis, 1, length - 1), views.narrow(axis, length - 2, 1)], axis)
    return (views * middle).add_(before.add_(after).mul_(side))
