"""How are views made where asking which of them are changed would make the device wait?

Shape suffixes: V view groups, N images of an epoch, M views, H and W pixels of a view, h and w pixels of the
source image.

`views` picks the views that an operation changes and works on these alone, which the host has to know. Here
every operation is done to every view and kept where it was drawn: no shape depends on a value, so that the
whole can be compiled and captured. Both give the same views to float32's rounding; on a CPU that is slower,
compiled for a GPU it is a few passes over the pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from care_sweep.learn.views import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    ViewParameters,
    blur_taps,
    gray,
    unit,
)

__all__ = ["PackedViews", "apply_densely"]


class PackedViews(NamedTuple):
    """The parameters of V groups of N views, one tensor a kind, so that few copies bring them to a device.

    Attributes:
        crop: (V, N, 4), int64: top, left, height and width in source pixels.
        chosen: (V, N, 4), bool: flip, jitter, grayscale, blur.
        order: (V, N, 4), int64: which operation of the jitter is done first, second and so on.
        factors: (V, N, 4), float32, by operation.
        sigma: (V, N), float32: of the blur in pixels.
    """

    crop: Tensor
    chosen: Tensor
    order: Tensor
    factors: Tensor
    sigma: Tensor

    @classmethod
    def of(cls, groups: Sequence[ViewParameters]) -> Self:
        """The groups, which have equally many views."""
        return cls(
            crop=torch.stack([torch.stack([p.top, p.left, p.height, p.width], 1) for p in groups]),
            chosen=torch.stack([torch.stack([p.flip, p.jitter, p.grayscale, p.blur], 1) for p in groups]),
            order=torch.stack([p.order for p in groups]),
            factors=torch.stack([p.factors for p in groups]),
            sigma=torch.stack([p.sigma for p in groups]),
        )

    def rows(self, numbers: Tensor) -> Self:
        """The views of these images, group after group: M = V times the number of images."""
        return type(self)(*(field.index_select(1, numbers).flatten(0, 1) for field in self))


def apply_densely(images: Tensor, parameters: PackedViews) -> Tensor:
    """The views (M, 3, h, w), float32 in [0, 1], as `apply_views` makes them.

    Args:
        images: (M, 3, h, w), uint8 or float in [0, 1].
        parameters: of M views, as `rows` gives them.
    """
    flip, jitter, grayscale, blur = parameters.chosen.view(-1, 4, 1, 1, 1).unbind(1)
    views = _cropped(unit(images), parameters.crop, flip[:, 0])
    for place in range(parameters.order.shape[1]):
        views = torch.where(jitter, _jittered(views, parameters, place), views)
    views = torch.where(grayscale, gray(views), views)
    return torch.where(blur, _blurred(views, parameters.sigma.view(-1, 1, 1, 1)), views)


def _cropped(images_M3hw: Tensor, crop: Tensor, flip_M11: Tensor) -> Tensor:
    """Cropped, resized to the images' own size, flipped: a product from each side."""
    top, left, height, width = crop.unbind(1)
    rows, columns = images_M3hw.shape[-2:]
    vertical_MHh = _resize_matrix(top, height, rows)
    horizontal_MWw = _resize_matrix(left, width, columns)
    horizontal_MWw = torch.where(flip_M11, horizontal_MWw.flip(1), horizontal_MWw)
    wide_M3hW = torch.bmm(images_M3hw.flatten(1, 2), horizontal_MWw.mT).view(-1, 3, rows, columns)
    return torch.matmul(vertical_MHh.unsqueeze(1), wide_M3hW)


def _resize_matrix(start_M: Tensor, length_M: Tensor, size: int) -> Tensor:
    """The weights (M, size, size) of source pixels in the target pixels of a crop: torchvision's antialiased
    bilinear resize of `length` pixels from `start` on to `size` pixels, along one axis.

    They are a triangle as wide as a target pixel, not narrower than a source pixel, cut off at the crop's
    edge and scaled to sum 1.
    """
    pixel = torch.arange(size, dtype=torch.float32, device=start_M.device)
    scale_M11 = (length_M / size).view(-1, 1, 1)
    source_M1p = pixel - start_M.view(-1, 1, 1)
    centre_Mp1 = (pixel.view(-1, 1) + 0.5) * scale_M11
    weight_Mpp = 1 - (source_M1p + 0.5 - centre_Mp1).abs() / scale_M11.clamp_min(1)
    outside_M1p = (source_M1p < 0) | (source_M1p >= length_M.view(-1, 1, 1))
    weight_Mpp = weight_Mpp.clamp_min_(0).masked_fill_(outside_M1p, 0)
    return weight_Mpp / weight_Mpp.sum(2, keepdim=True)


def _jittered(views: Tensor, parameters: PackedViews, place: int) -> Tensor:
    """Each view after the operation that its order has in this place.

    Brightness, contrast and saturation mix a view with black, with its mean gray and with its gray.
    """
    operation_M1 = parameters.order[:, place : place + 1]
    factor = parameters.factors.gather(1, operation_M1).view(-1, 1, 1, 1)
    operation = operation_M1.view(-1, 1, 1, 1)
    grays = gray(views)
    mean = grays.mean((2, 3), keepdim=True)
    other = torch.where(operation == CONTRAST, mean, grays)
    other = torch.where(operation == BRIGHTNESS, 0.0, other)
    mixed = (views * factor + other * (1 - factor)).clamp(0, 1)
    return torch.where(operation == HUE, _hue_shifted(views, factor), mixed)


def _hue_shifted(views: Tensor, shift: Tensor) -> Tensor:
    """As `views` shifts the hue, each channel written out: the least plus the chroma times a trapezium."""
    red, green, blue = views.unbind(1)
    most, least = views.amax(1), views.amin(1)
    chroma = most - least
    rise = torch.where(most == red, green - blue, torch.where(most == green, blue - red, red - green))
    begin = torch.where(most == red, 0.0, torch.where(most == green, 2.0, 4.0))
    hue = rise / chroma.clamp_min(torch.finfo(views.dtype).tiny) + begin + 6 * shift[:, 0]
    hue = hue - 6 * (hue / 6).floor()
    shares = torch.stack([(hue - 3).abs() - 1, 2 - (hue - 2).abs(), 2 - (hue - 4).abs()], 1)
    return shares.clamp(0, 1) * chroma.unsqueeze(1) + least.unsqueeze(1)


def _blurred(views: Tensor, sigma: Tensor) -> Tensor:
    """As `views` blurs, its three taps added up without writing into a part of a tensor."""
    middle, side = blur_taps(sigma)
    for axis in (2, 3):
        length = views.shape[axis]
        before = torch.cat([views.narrow(axis, 1, 1), views.narrow(axis, 0, length - 1)], axis)
        after = torch.cat([views.narrow(axis, 1, length - 1), views.narrow(axis, length - 2, 1)], axis)
        views = (views * middle).add_(before.add_(after).mul_(side))
    return views
