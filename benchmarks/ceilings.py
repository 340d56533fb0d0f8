"""What can a device do at most, and how much of it does a trained image ask for?

Two ceilings are measured, as contenders of a race: matrix products and copies. What an image asks for is
counted on the model, not assumed.
"""

import time
from dataclasses import dataclass

import torch
from side_by_side import Turn, synchronise
from torch import Tensor, nn

__all__ = ["MatrixProduct", "MemoryCopy", "Work", "work_of_view"]

_TIMES_FORWARD = 3  # the forward, and backward the gradients of inputs and of weights
_NORM_PASSES = 8  # forward: statistics 1, output 2; backward: two sums 2, gradient 3


class MatrixProduct:
    """A square product, bfloat16 on a GPU and float32 on a CPU; the amount is in operations (FLOP)."""

    def __init__(self, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._device, self._size, self._times = device, 8192 if on_gpu else 1024, 10 if on_gpu else 4
        dtype = torch.bfloat16 if on_gpu else torch.float32
        self._factor = torch.randn(self._size, self._size, device=device).to(dtype)
        self._product = torch.empty_like(self._factor)
        self.turn()

    def turn(self) -> Turn:
        synchronise(self._device)
        started = time.perf_counter()
        for _ in range(self._times):
            torch.mm(self._factor, self._factor, out=self._product)
        synchronise(self._device)
        return Turn(2.0 * self._size**3 * self._times, time.perf_counter() - started)


class MemoryCopy:
    """A copy within the device's memory; the amount is in bytes, read and written."""

    def __init__(self, device: torch.device) -> None:
        size = 2**30 if device.type == "cuda" else 2**27
        self._device, self._times = device, 10 if device.type == "cuda" else 2
        self._source = torch.ones(size, dtype=torch.uint8, device=device)
        self._target = torch.empty_like(self._source)
        self.turn()

    def turn(self) -> Turn:
        synchronise(self._device)
        started = time.perf_counter()
        for _ in range(self._times):
            self._target.copy_(self._source)
        synchronise(self._device)
        return Turn(2.0 * len(self._source) * self._times, time.perf_counter() - started)


@dataclass(frozen=True)
class Work:
    """What one view asks for in one training step.

    Attributes:
        flops: of convolutions and linear layers, a multiplication and an addition each.
        values: numbers read and written, were everything between convolutions and BatchNorms fused into
            them: each layer's input and output at its convolution in all three products, and 8 passes
            over the output at its BatchNorm. Bytes are these times the size of a number.
    """

    flops: int
    values: int


def work_of_view(model: nn.Module, size: tuple[int, int]) -> Work:
    """The work of one view of `size` (height, width), counted on a forward of one image."""
    flops, values = [0], [0]

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            values[0] += _NORM_PASSES * output.numel()
        else:
            fan_in = layer.weight[0].numel()  # of one output number
            flops[0] += _TIMES_FORWARD * 2 * fan_in * output.numel()
            values[0] += _TIMES_FORWARD * (inputs[0].numel() + output.numel())

    layers = (nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm)
    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, layers)]
    was_training, parameter = model.training, next(model.parameters())
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, *size, device=parameter.device, dtype=parameter.dtype))
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    return Work(flops[0], values[0])
