"""How does a CPU train 3x3 convolutions with a quarter of the multiplications?

By Winograd's F(4x4, 3x3) (Lavin and Gray, 2016, Section 4): tiles of 6x6 inputs and filters are brought to
6x6 points, where a convolution is a plain product, and what that gives to tiles of 4x4 outputs. So all is
matrix products: over the channels at each of the 36 points, and with small fixed matrices before and after.
The gradient of the inputs is such a convolution too, of the outputs' gradient with the filters turned round;
that of the filters sums its products over the tiles instead.

Shape suffixes: N images, H and W their sides, C channels in, D channels out, P the 36 points, T tiles.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["Conv3x3", "with_fewer_multiplications"]

_T = TypeVar("_T")

_TILE, _OUTPUTS = 6, 4  # sides of a tile of inputs and of its outputs
_POINTS = (0.0, 0.625, -0.625, 1.5, -1.5)  # and infinity; 0, 1, -1, 2, -2 have twice the rounding error
_TILES_AT_ONCE = 128  # of a thread: enough for fast products, few enough to stay in a cache
_NUMBERS_AT_ONCE = 2**20  # of filters at the points: glibc keeps small pieces of memory for the next
_LEAST_CHANNELS, _LEAST_NUMBERS = 64, 2**14  # numbers at a point; with fewer torch's own is as fast


class Conv3x3(nn.Conv2d):
    """torch's convolution of 3x3 pixels, stride 1, no bias; where a CPU trains it, mostly by Winograd's way.

    That rounds otherwise: of ResNet-18's layers to 1.2e-6 of the outputs' root mean square in float32, where
    torch's own is within 7e-7.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the name is torch's)
        if self.training and _is_faster(input, self.weight):
            outputs: Tensor = _Winograd.apply(input, self.weight)
            return outputs
        return super().forward(input)


def with_fewer_multiplications(network: nn.Module) -> nn.Module:
    """The network, with a `Conv3x3` of the same parameter for each convolution that can be one."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Conv2d and _what_it_does(child) == _3X3:
                twin = Conv3x3(child.in_channels, child.out_channels, 3, padding=1, bias=False, device="meta")
                twin.weight = child.weight
                setattr(parent, name, twin)
    return network


_3X3 = ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros", False)


def _what_it_does(layer: nn.Conv2d) -> tuple[Any, ...]:
    sizes = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return (*sizes, layer.groups, layer.padding_mode, layer.bias is not None)


def _is_faster(images: Tensor, weight: Tensor) -> bool:
    """Whether Winograd's way was seen to be: in float32 by MKL, of whole tiles, many channels and images."""
    num_images, _, height, width = images.shape
    num_channels, num_tiles = min(weight.shape[:2]), num_images * height * width // _OUTPUTS**2
    return (
        not torch.compiler.is_compiling()
        and images.device.type == "cpu"
        and images.dtype == torch.float32
        and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        and not torch.is_autocast_enabled("cpu")
        and height % _OUTPUTS == width % _OUTPUTS == 0
        and num_channels >= _LEAST_CHANNELS
        and num_channels * num_tiles >= _LEAST_NUMBERS * torch.get_num_threads()
    )


class _Winograd(torch.autograd.Function):
    """Images (N, C, H, W) and weight (D, C, 3, 3) to outputs (N, D, H, W); quick where channels are last."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(images, weight)
        filters = _filters(weight, _matrices(weight.dtype).filters)
        return _convolved(images, [one.transpose(1, 2) for one in filters])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        images, weight = ctx.saved_tensors
        of_images = of_weight = None
        if ctx.needs_input_grad[0]:
            turned = _matrices(weight.dtype).filters.flip(1)
            of_images = _convolved(gradient, _filters(weight, turned))
        if ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(images, gradient, weight)
        return of_images, of_weight


# --- at the points ------------------------------------------------------------------------------------------


class _Matrices(NamedTuple):
    """From tiles of inputs (P, 36) and filters (P, 9) to the points, and from there to outputs (16, P)."""

    inputs: Tensor
    filters: Tensor
    outputs: Tensor


@lru_cache
def _matrices(dtype: torch.dtype) -> _Matrices:
    """Toom and Cook's multiplication of polynomials, transposed, down and across at once."""
    points = torch.tensor(_POINTS, dtype=torch.float64)

    def values(num_coefficients: int) -> Tensor:
        at_infinity = torch.eye(num_coefficients, dtype=torch.float64)[-1:]
        return torch.cat([torch.vander(points, num_coefficients, increasing=True), at_infinity])

    across = (torch.linalg.inv(values(_TILE)).T, values(3), values(_OUTPUTS).T)
    return _Matrices(*(torch.kron(one, one).to(dtype) for one in across))


def _filters(weight: Tensor, matrix: Tensor) -> list[Tensor]:
    """The filters at the points, some points after others: (p, D, C)."""
    taps, pieces = weight.permute(2, 3, 0, 1).reshape(9, -1), torch.split(matrix, _points_at_once(weight))
    return [(rows @ taps).view(-1, *weight.shape[:2]) for rows in pieces]


def _convolved(images: Tensor, filters: list[Tensor]) -> Tensor:
    """(N, D, H, W), channels last, of images (N, C, H, W) and filters (p, C, D)."""
    num_images, _, height, width = images.shape
    num_points, _, num_out = filters[0].shape
    outputs = images.new_empty(num_images, height, width, num_out).permute(0, 3, 1, 2)

    def fill(images: Tensor, outputs: Tensor) -> None:
        for rows, values_PTC in _at_points(images):
            products_PTD = values_PTC.new_empty(*values_PTC.shape[:2], num_out)
            parts = torch.split(values_PTC, num_points), filters, torch.split(products_PTD, num_points)
            for values, some_filters, products in zip(*parts, strict=True):
                torch.bmm(values, some_filters, out=products)
            tiles = _tiles(outputs[rows], _OUTPUTS)
            tiles.copy_((_matrices(images.dtype).outputs @ products_PTD.flatten(1)).view(tiles.shape))

    _in_threads(fill, images, outputs)
    return outputs


def _weight_gradient(images: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    """(D, C, 3, 3) of images (N, C, H, W) and the outputs' gradient (N, D, H, W)."""
    num_out, num_in = weight.shape[:2]
    matrices, num_points = _matrices(images.dtype), _points_at_once(weight)

    def of_taps(images: Tensor, gradient: Tensor) -> Tensor:
        taps = images.new_zeros(9, num_out * num_in)
        for rows, values_PTC in _at_points(images):
            tiles = _tiles(gradient[rows], _OUTPUTS).reshape(_OUTPUTS**2, -1)
            gradients_PDT = (matrices.outputs.T @ tiles).view(_TILE**2, -1, num_out).transpose(1, 2)
            parts = (torch.split(one, num_points) for one in (matrices.filters, gradients_PDT, values_PTC))
            for filters, gradients, values in zip(*parts, strict=True):
                taps.addmm_(filters.T, torch.bmm(gradients, values).flatten(1))
        return taps

    taps = torch.stack(_in_threads(of_taps, images, gradient)).sum(0)
    return taps.view(3, 3, num_out, num_in).permute(2, 3, 0, 1)


def _points_at_once(weight: Tensor) -> int:
    return max(1, _NUMBERS_AT_ONCE // weight[:, :, 0, 0].numel())


def _at_points(images: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some images after others, and the values (P, T, C) of their tiles at the points."""
    num_images, num_channels, height, width = images.shape
    at_once = min(num_images, max(1, _TILES_AT_ONCE * _OUTPUTS**2 // (height * width)))
    padded = images.new_zeros(at_once, height + 2, width + 2, num_channels).permute(0, 3, 1, 2)
    for start in range(0, num_images, at_once):
        rows = slice(start, min(start + at_once, num_images))
        some = padded[: rows.stop - start]
        some[:, :, 1:-1, 1:-1] = images[rows]
        tiles = _tiles(some, _TILE).reshape(_TILE**2, -1)
        yield rows, (_matrices(images.dtype).inputs @ tiles).view(_TILE**2, -1, num_channels)


def _tiles(images: Tensor, side: int) -> Tensor:
    """A view (side, side, N, down, across, C) of images (N, C, H, W): a tile begins at each fourth pixel."""
    return images.unfold(2, side, _OUTPUTS).unfold(3, side, _OUTPUTS).permute(4, 5, 0, 2, 3, 1)


# --- threads ------------------------------------------------------------------------------------------------


def _in_threads(work: Callable[[Tensor, Tensor], _T], first: Tensor, second: Tensor) -> list[_T]:
    """What the work gives for each thread's share of the rows, in their order.

    torch's threads would meet after each of hundreds of small products, and wait there for any that another
    process has put off its processor.
    """
    num_threads = torch.get_num_threads()
    if num_threads == 1:
        return [work(first, second)]

    @torch.no_grad()
    def share(rows: tuple[Tensor, Tensor]) -> _T:
        return work(*rows)

    shares = zip(first.chunk(num_threads), second.chunk(num_threads), strict=True)
    return list(_threads(num_threads).map(share, shares))


@lru_cache
def _threads(number: int) -> ThreadPoolExecutor:
    """So many threads, in each of which torch uses no other."""
    started = Barrier(number + 1)

    def start() -> None:
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(number, "convolutions", start)
    for _ in range(number):
        pool.submit(lambda: None)
    started.wait()
    torch.set_num_threads(number)  # also what threads begin with that are started by others
    return pool
