"""How is a view of an image made? Parameters are drawn on the host, then applied on the device.

Shape suffixes: N views, H and W pixels of a view, h and w pixels of the source image, T tries of a crop,
K source rows of a target row, P places in the order of the jitter, C channels.

Drawing and applying are apart so that one augmentation can be shared by many images, and so that the same
parameters can be applied to other images of that size. Each operation equals torchvision's for float tensors
in [0, 1].

What is computed where: parameters, which view gets which operation, which source rows a target row is made
of, and the colour matrices of the jitter, are made on the host and copied to the device in every call; pixels
stay on the device. Nothing is read back from it, but the copies are from pageable memory, so that the host
waits until they have been read.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

__all__ = [
    "BRIGHTNESS",
    "CONTRAST",
    "HUE",
    "SATURATION",
    "Strength",
    "ViewParameters",
    "apply_views",
    "blur_taps",
    "draw_shared_views",
    "draw_views",
    "gray",
    "hue_change",
    "normalise",
    "unit",
]

_RATIO = (3 / 4, 4 / 3)
_LEAST_CROP_SCALE = 0.08  # as published for 32 px, and torchvision's own
_NUM_TRIES = 10  # torchvision's RandomResizedCrop
_GRAY = (0.2989, 0.587, 0.114)  # torchvision's rgb_to_grayscale
_PIXELS_AT_ONCE = 2**16  # that a CPU crops: what it needs for them stays in the cache and with the allocator

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
    hue_place, order = _hue_place(parameters).sort(stable=True)
    parameters, there = parameters[order], order.to(images.device, non_blocking=True)
    cropped = _crop_and_flip(images, there, parameters)
    _jitter(cropped, parameters, hue_place)
    _change(cropped, parameters.grayscale, lambda chosen, _: gray(chosen).expand_as(chosen))
    _change(cropped, parameters.blur, _blurred, parameters.sigma)
    return torch.empty_like(cropped).index_copy_(0, there, cropped)


def unit(images: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1]; float images as they are."""
    return images if images.is_floating_point() else images.to(torch.float32).div_(255)


def normalise(
    images: Tensor, mean: Sequence[float], std: Sequence[float], *, out: Tensor | None = None
) -> Tensor:
    """Images in [0, 1] (or uint8) with the channels' mean taken off and divided by their deviation.

    Args:
        out: float, of their shape, for the result; the images themselves spare a CPU new memory.
    """
    pixels = unit(images)
    shift = torch.tensor(mean, dtype=pixels.dtype).view(3, 1, 1).to(pixels.device, non_blocking=True)
    scale = torch.tensor(std, dtype=pixels.dtype).view(3, 1, 1).to(pixels.device, non_blocking=True)
    return torch.sub(pixels, shift, out=out).div_(scale)


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


# --- crop ---------------------------------------------------------------------------------------------------


def _crop_and_flip(images: Tensor, rows: Tensor, parameters: ViewParameters) -> Tensor:
    """The images of these rows, float in [0, 1]: cropped, resized to their own size as torchvision's bilinear
    resize, flipped."""
    p, (num_rows, num_columns) = parameters, images.shape[-2:]
    on_cpu = images.device.type == "cpu"
    at_once = max(1, _PIXELS_AT_ONCE // (num_rows * num_columns) if on_cpu else len(images))
    down = _bags(*_resize(p.top, p.height, num_rows, torch.zeros_like(p.flip)), num_rows, at_once)
    across = _bags(*_resize(p.left, p.width, num_columns, p.flip), num_columns, at_once)
    dtype = images.dtype
    if not dtype.is_floating_point:
        dtype = torch.float32
        down[1].div_(255)  # as `unit`
    views = torch.empty(images.shape, dtype=dtype, device=images.device)
    parts = (torch.split(one, at_once) for one in (views, rows, *down, *across))
    for part, chosen, *bags in zip(*parts, strict=True):
        tall_n3Hw = _weighted_rows(images.index_select(0, chosen).to(dtype), *bags[:2])
        part.copy_(_weighted_rows(tall_n3Hw.mT, *bags[2:]).mT)
    return views


def _resize(start_N: Tensor, length_N: Tensor, size: int, mirrored_N: Tensor) -> tuple[Tensor, Tensor]:
    """Which source rows (N, size, 2) `length` rows from `start` on, brought to `size` rows, are made of, and
    their weights.

    A crop is never longer than the image, so a target row lies between two source rows (antialiasing, which
    is for those that cover more, changes nothing), or beyond the middle of the first or last one.
    """
    target_H = torch.arange(size) + 0.5
    target_NH = torch.where(mirrored_N.unsqueeze(1), size - target_H, target_H)
    last_N1 = length_N.unsqueeze(1) - 1
    place_NH = (target_NH * (length_N / size).unsqueeze(1)).sub_(0.5).clamp_min_(0)
    first_NH = torch.minimum(place_NH.long(), last_N1)
    second_NH = torch.minimum(first_NH + 1, last_N1)
    share_NH = place_NH - first_NH
    rows_NHK = torch.stack([first_NH, second_NH], 2) + start_N.view(-1, 1, 1)
    return rows_NHK, torch.stack([1 - share_NH, share_NH], 2)


def _bags(rows_NHK: Tensor, weights_NHK: Tensor, num_rows: int, at_once: int) -> tuple[Tensor, Tensor]:
    """The same (N, 3, H, K) for each channel, the rows counted from the first of `at_once` images on."""
    image_N11 = (torch.arange(len(rows_NHK)) % at_once).view(-1, 1, 1)
    begin_N311 = ((3 * image_N11 + torch.arange(3).view(3, 1)) * num_rows).unsqueeze(3)
    rows_N3HK = rows_NHK.unsqueeze(1) + begin_N311
    return rows_N3HK, weights_NHK.unsqueeze(1).expand_as(rows_N3HK).contiguous()


def _weighted_rows(images_N3hw: Tensor, rows_N3HK: Tensor, weights_N3HK: Tensor) -> Tensor:
    """(N, 3, H, w): each target row is the weighted sum of K source rows, an embedding bag of them."""
    width = images_N3hw.shape[3]
    sums = embedding_bag(
        rows_N3HK.flatten(0, 2).to(images_N3hw.device, non_blocking=True),
        images_N3hw.reshape(-1, width),
        mode="sum",
        per_sample_weights=weights_N3HK.flatten(0, 2).to(images_N3hw, non_blocking=True),
    )
    return sums.view(*rows_N3HK.shape[:3], width)


# --- colour -------------------------------------------------------------------------------------------------


def _hue_place(parameters: ViewParameters) -> Tensor:
    """(N): where in the order of the jitter the hue stands, 4 for views without jitter."""
    place_N = (parameters.order == HUE).int().argmax(1)
    return place_N.where(parameters.jitter, parameters.order.shape[1])


def _jitter(views: Tensor, parameters: ViewParameters, hue_place: Tensor) -> None:
    """Change the views, which come in the order of `hue_place`: first what stands before the hue, then the
    hue of all at once, then the rest. Those that are mixed in one place lie side by side."""
    num_places = parameters.order.shape[1]
    ends = torch.bincount(hue_place, minlength=num_places).cumsum(0).tolist()
    num_jittered = ends[num_places - 1]
    amounts = (*_mixtures(parameters), parameters.factors[:, HUE])
    colours, means, shift = (one.to(views, non_blocking=True) for one in amounts)
    for place in range(num_places - 1):
        later = slice(ends[place], num_jittered)
        _mix(views[later], colours[later, place], means[later, place])
    _shift_hue(views[:num_jittered], shift[:num_jittered])
    for place in range(1, num_places):
        earlier = slice(0, ends[place - 1])
        _mix(views[earlier], colours[earlier, place], means[earlier, place])


def _mixtures(parameters: ViewParameters) -> tuple[Tensor, Tensor]:
    """Brightness, contrast and saturation mix a view with black, with its mean gray and with its gray.

    Returns:
        (N, P, 3, 3), by which the colours of each pixel are multiplied, and (N, P, 3), by which the mean
        colour is, whose sum is then added.
    """
    factor_NP, gray_C = parameters.factors.gather(1, parameters.order), torch.tensor(_GRAY)
    rest_NP = 1 - factor_NP
    of_gray_NP, of_mean_NP = (rest_NP * (parameters.order == what) for what in (SATURATION, CONTRAST))
    itself_NPCC = factor_NP[..., None, None] * torch.eye(3)
    return itself_NPCC + of_gray_NP[..., None, None] * gray_C, of_mean_NP[..., None] * gray_C


def _mix(views: Tensor, colours_NCC: Tensor, means_NC: Tensor) -> None:
    if len(views) == 0:
        return
    pixels = views.flatten(2)
    added_N11 = (pixels.mean(2) * means_NC).sum(1).view(-1, 1, 1)
    torch.clamp(torch.baddbmm(added_N11, colours_NCC, pixels), 0, 1, out=pixels)


def gray(views: Tensor) -> Tensor:
    """Luminance (N, 1, H, W), as torchvision's rgb_to_grayscale."""
    red, green, blue = views.unsqueeze(2).unbind(1)
    return (red * _GRAY[0]).add_(green, alpha=_GRAY[1]).add_(blue, alpha=_GRAY[2])


def _shift_hue(views: Tensor, shift: Tensor) -> None:
    """Move the hue by a share of the circle, as through HSV and back.

    The hue is in sixths of the circle; a channel is the least one plus the chroma times a trapezium of it.
    Away from red, towards green or towards blue, the hue is 1 + (green + blue - red - least) / chroma.
    """
    red, green, blue = views.unbind(1)
    least = torch.minimum(red, green)
    torch.minimum(least, blue, out=least)
    chroma = torch.maximum(red, green)
    torch.maximum(chroma, blue, out=chroma).sub_(least)
    hue = (green + blue).sub_(red).sub_(least)
    spare = chroma.clamp_min(torch.finfo(chroma.dtype).tiny)
    hue.div_(spare).add_(1).copysign_(torch.sub(green, blue, out=spare)).add_(6 * shift.view(-1, 1, 1))
    hue.sub_(torch.div(hue, 6, out=spare).floor_(), alpha=6)
    torch.sub(hue, 3, out=red).abs_().sub_(1)
    torch.sub(2, torch.sub(hue, 2, out=spare).abs_(), out=green)
    torch.sub(2, torch.sub(hue, 4, out=spare).abs_(), out=blue)
    torch.addcmul(least.unsqueeze(1), views.clamp_(0, 1), chroma.unsqueeze(1), out=views)


# --- blur ---------------------------------------------------------------------------------------------------


def blur_taps(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The weights of the middle and of each neighbour in a Gaussian of 3 pixels."""
    side = torch.exp(-0.5 / sigma.square())
    return 1 / (1 + 2 * side), side / (1 + 2 * side)


def _blurred(views: Tensor, sigma: Tensor) -> Tensor:
    """A 3x3 Gaussian of `sigma` (N, 1, 1, 1) pixels with reflected edges, as one pass down and one across; in
    place of the views, which are contiguous."""
    middle, side = blur_taps(sigma)
    for axis in (2, 3):
        views.add_(_neighbours(views, axis).mul_(side / middle))
    return views.mul_(middle.square())


def _neighbours(views: Tensor, axis: int) -> Tensor:
    """The sum of the two neighbours of each pixel along an axis: at an edge the one that there is, twice.

    All pixels are added as if they were one row, in long runs; then the edges are put right.
    """
    sums, step, pixels = torch.empty_like(views), views.stride(axis), views.view(-1)
    torch.add(pixels[: -2 * step], pixels[2 * step :], out=sums.view(-1)[step:-step])
    for edge, neighbour in ((0, 1), (-1, -2)):
        torch.mul(views.select(axis, neighbour), 2, out=sums.select(axis, edge))
    return sums
