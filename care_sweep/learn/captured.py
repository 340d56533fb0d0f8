"""How does a GPU take the steps of an epoch without a word from the host?

Shape suffixes: N train images, B images of a batch, V view groups, S steps of an epoch.

An epoch's order of images, augmentations and learning rates are copied to the device at its start; which step
it is stands there too. So a step needs nothing from the host: its views and its losses are compiled, and all
of it, from gathering pixels to the optimiser, is captured as one CUDA graph that the host replays. What a
trial is told that changes no shape (weight, temperature, learning rate) is a scalar on the device, so that
the trials of a sweep share in a process what is compiled.

The first steps of a trial in a process run without the graph, since what is set up lazily may not be
captured; they are steps like all others. On a CPU, which has no graphs, all of them run so.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from care_sweep.learn.bases import Base
from care_sweep.learn.dense_views import PackedViews, apply_densely
from care_sweep.learn.encoder import CareModel
from care_sweep.learn.precision import ieee_convolutions
from care_sweep.learn.step import divergence, step_losses
from care_sweep.learn.views import ViewParameters

__all__ = ["CapturedSteps", "EpochDraws"]

_STEPS_BEFORE_CAPTURE = 3
_STEPS_BETWEEN_LOOKS = 64
_VARIANTS = 64  # of one function that are kept compiled: encoders, bases and batch sizes in one process


@dataclass(frozen=True)
class EpochDraws:
    """What chance and schedule say about an epoch, on the host.

    Attributes:
        order: (S * B) or more rows of the train images, int64; a step takes B of them.
        views: a group of S * B views for each view of an image: those the model embeds, then those its base
            embeds itself.
        rates: the S learning rates.
    """

    order: Tensor
    views: Sequence[ViewParameters]
    rates: Sequence[float]


class CapturedSteps:
    """The steps of one trial: model, base and optimiser move; which have no other owner during an epoch.

    Args:
        images: (N, 3, h, w), uint8, on the device.
        mean, std: of the images' channels, pixels in [0, 1].
        optimizer: fused, its learning rate a tensor on the device, which is set at every step.
        options: of `step_losses`.
        num_batches: groups that batch normalisation sees.
    """

    def __init__(
        self,
        *,
        model: CareModel,
        base: Base,
        optimizer: torch.optim.Optimizer,
        images: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        num_batches: int,
        options: dict[str, Any],
    ) -> None:
        self._model, self._base, self._optimizer = model, base, optimizer
        self._images, self._device = images, images.device
        self._mean, self._std = (torch.tensor(one, device=self._device).view(3, 1, 1) for one in (mean, std))
        self._num_batches, self._options = num_batches, options
        base.settings_to_device(self._device)
        self._rate: Tensor = optimizer.param_groups[0]["lr"]
        self._within_B = torch.arange(batch_size, device=self._device)
        self._step = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._total = torch.zeros(3, device=self._device)
        self._is_diverged = torch.zeros((), device=self._device)
        self._diverged_at = torch.zeros(5, device=self._device)  # step, the three losses, gradient norm
        optimizer.found_inf = self._is_diverged  # type: ignore[attr-defined]  # fused ones do nothing while it is 1
        self._drawn: tuple[Tensor, PackedViews, Tensor] | None = None
        self._num_taken = 0
        self._stream = torch.cuda.Stream(self._device) if self._is_cuda else None  # type: ignore[no-untyped-call]
        self._graph: torch.cuda.CUDAGraph | None = None
        torch._dynamo.config.recompile_limit = max(_VARIANTS, torch._dynamo.config.recompile_limit)

    @property
    def _is_cuda(self) -> bool:
        return self._device.type == "cuda"

    def begin_epoch(self, draws: EpochDraws) -> None:
        """Bring the draws to the device and ask for all steps; a GPU is still at them on return.

        Raises:
            TrialDiverged: as `end_epoch`, some steps late.
        """
        for _ in self.ask(draws):
            pass

    def ask(self, draws: EpochDraws) -> Iterator[None]:
        """`begin_epoch`, a step at each turn: trials on streams of their own may be asked in turns."""
        self._bring(draws)
        self._step.zero_()
        self._total.zero_()
        behind = _Behind(self._is_diverged)
        for step in range(len(draws.rates)):
            self._take()
            if step % _STEPS_BETWEEN_LOOKS == _STEPS_BETWEEN_LOOKS - 1 and behind.is_set():
                return
            yield

    def end_epoch(self, where: str) -> list[float]:
        """The means over the steps of loss, contrast and equivariance.

        Raises:
            TrialDiverged: a step's loss or gradient was not finite; weights did not move from there on.
        """
        means: list[float] = (self._total / self._step).tolist()
        if self._is_diverged.item():
            step, *found = self._diverged_at.tolist()
            raise divergence(where.format(step=int(step) + 1), self._base.contrast, found)
        return means

    def _bring(self, draws: EpochDraws) -> None:
        rates = torch.tensor(draws.rates, dtype=self._rate.dtype)
        drawn = (draws.order, *PackedViews.of(draws.views), rates)
        if self._drawn is None:
            order, *packed, rates = (one.to(self._device) for one in drawn)
            self._drawn = order, PackedViews(*packed), rates
            return
        for kept, new in zip((self._drawn[0], *self._drawn[1], self._drawn[2]), drawn, strict=True):
            kept.copy_(new.pin_memory() if self._is_cuda else new, non_blocking=True)

    # --- a step ---------------------------------------------------------------------------------------------

    def _take(self) -> None:
        """One step, by the graph once there is one."""
        if self._stream is None:
            self._one_step()
        elif self._num_taken < _STEPS_BEFORE_CAPTURE:
            with _beside(self._stream), _measured_convolutions():
                self._one_step()
        else:
            if self._graph is None:
                self._capture()
            assert self._graph is not None, "captured just now"
            self._graph.replay()
        self._num_taken += 1

    def _capture(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)  # so that gradients lie in the graph's memory
        graph = torch.cuda.CUDAGraph()
        with _measured_convolutions(), torch.cuda.graph(graph, stream=self._stream):
            self._one_step()
        self._graph = graph

    @ieee_convolutions()
    def _one_step(self) -> None:
        """All on the device; a graph may stand for it."""
        assert self._drawn is not None, "an epoch brings its draws"
        order, packed, rates = self._drawn
        places_B = self._step * len(self._within_B) + self._within_B
        with torch.no_grad():
            numbers_B, parameters = order.index_select(0, places_B), packed.rows(places_B)
            views = _compiled(_make_views)(self._images, numbers_B, parameters, self._mean, self._std)
        self._optimizer.zero_grad(set_to_none=True)
        with self._model.view_groups(self._num_batches):
            loss, losses = _compiled(_losses)(self._model, self._base, views, self._options)
        loss.backward()
        self._note(losses)
        self._rate.copy_(rates.index_select(0, self._step)[0])
        self._optimizer.step()
        self._base.follow(self._model)
        self._total += losses
        self._step += 1

    @torch.no_grad()
    def _note(self, losses: Tensor) -> None:
        """Remember the first step whose loss or gradient is not finite."""
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        is_bad = ~torch.isfinite(losses[0] + norm)
        now = torch.cat([self._step, losses, norm.view(1)])
        self._diverged_at.copy_(torch.where(is_bad & (self._is_diverged == 0), now, self._diverged_at))
        self._is_diverged.copy_(torch.maximum(self._is_diverged, is_bad.to(self._is_diverged)))


class _Behind:
    """A flag on the device that the host reads without waiting for what it has asked for last."""

    def __init__(self, flag: Tensor) -> None:
        self._flag = flag
        self._copies: list[tuple[Tensor, torch.cuda.Event]] = []

    def is_set(self) -> bool:
        """Whether the flag was set when this was last called; on a CPU, whether it is."""
        if self._flag.device.type == "cpu":
            return bool(self._flag)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copy = torch.empty_like(self._flag, device="cpu", pin_memory=True)
        copy.copy_(self._flag, non_blocking=True)
        event.record(torch.cuda.current_stream(self._flag.device))  # another device may be the current one
        self._copies.append((copy, event))
        if len(self._copies) < 2:
            return False
        copy, event = self._copies.pop(0)
        event.synchronize()
        return bool(copy)


# --- what is compiled ---------------------------------------------------------------------------------------


@lru_cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled once a process for each set of shapes and kinds of module."""
    return torch.compile(function, dynamic=False, fullgraph=True)


def _make_views(
    images: Tensor, numbers_B: Tensor, parameters: PackedViews, mean: Tensor, std: Tensor
) -> Tensor:
    """The normalised views of the images of these numbers, group after group, channels last."""
    num_groups = len(parameters.chosen) // len(numbers_B)
    batch = images.index_select(0, numbers_B).repeat(num_groups, 1, 1, 1)
    views = (apply_densely(batch, parameters) - mean) / std
    return views.contiguous(memory_format=torch.channels_last)


def _losses(model: CareModel, base: Base, views: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    found = step_losses(model, base, views, **options)
    return found.loss, found.stacked()


# --- the surroundings of a step -----------------------------------------------------------------------------


@contextmanager
def _beside(stream: torch.cuda.Stream) -> Iterator[None]:
    """On another stream, in the order of the calls."""
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(stream.device).wait_stream(stream)


@contextmanager
def _measured_convolutions() -> Iterator[None]:
    """cuDNN tries its algorithms for each shape and keeps the fastest."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
