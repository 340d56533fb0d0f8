"""How do several captured trials run at once in one process, each on a CUDA stream of its own?

One thread asks each trial for a step in turn; on a GPU a step is one graph, so that the thread is soon done
with all of them and the device orders the rest. Graphs have memory of their own, and each was captured alone,
before anything is timed. On a CPU, which has neither streams nor graphs, steps are taken in turn, uncompiled.
"""

import gc
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from care_sweep.learn.data import Dataset
from care_sweep.learn.packing import Order, PackError
from care_sweep.learn.train import _Trial

__all__ = ["Streams", "on_streams"]


@contextmanager
def on_streams() -> Iterator["Streams"]:
    """A pack in this process; nothing of it stays on the device afterwards."""
    pack = Streams()
    try:
        yield pack
    finally:
        pack.clear()


class Streams:
    """A pack of trials in one process."""

    def __init__(self) -> None:
        self._lanes: list[_Lane] = []
        self._error = ""

    def clear(self) -> None:
        self._lanes.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def prepare(self, order: Order, num_trials: int) -> None:
        """One after another: no step runs while another trial is captured."""
        self.clear()
        self._error = ""
        try:
            data = order.data().on(torch.device(order.device))
            for _ in range(num_trials):
                self._lanes.append(_Lane(order, data))
        except Exception:  # noqa: BLE001  (those that stand can run)
            self._error = traceback.format_exc(limit=-3)

    def run(self, num_trials: int, seconds: float) -> Sequence[float]:
        if num_trials > len(self._lanes):
            raise PackError(f"of {num_trials} trials {len(self._lanes)} has been built\n{self._error}")
        lanes = self._lanes[:num_trials]
        num_images, started = 0, time.monotonic()
        while not num_images or time.monotonic() < started + seconds:
            _train_in_turns(lanes)
            num_images += lanes[0].num_images
        return [num_images / (time.monotonic() - started)] * num_trials


class _Lane:
    """A trial that has done its first epoch, in which it compiles and captures, and its stream.

    Attributes:
        losses: of the last epoch taken in turns.
    """

    def __init__(self, order: Order, data: Dataset) -> None:
        device = torch.device(order.device)
        self._is_cuda = device.type == "cuda"
        config = order.config.model_copy(update={"compile": "always"})  # which is: in captured steps
        self._trial = _Trial(config, data, device)
        self.losses: list[float] = []
        self.num_images = self._trial.num_steps * config.batch_size
        with self._on_default():
            self._trial.train_epoch()
        self._stream = torch.cuda.Stream(device) if self._is_cuda else None
        if self._is_cuda:
            torch.cuda.synchronize(device)  # what lies on the device is there for any stream

    def epoch(self) -> Iterator[None]:
        """An epoch in turns: some ask for a step, then one draws the next epoch, and the last waits."""
        trial, captured = self._trial, self._trial._captured
        assert captured is not None, "compile is always"
        number = trial.num_epochs_done + 1
        draws = trial._draws(number)
        trial.model.train()
        yield from captured.ask(draws)
        trial._drawn = number + 1, trial._draws(number + 1)
        yield
        self.losses = captured.end_epoch(f"epoch {number}, step {{step}}")
        trial.num_epochs_done = number

    def goes_on(self, epoch: Iterator[None]) -> bool:
        """Take a turn of the epoch on the stream; whether there was one left."""
        with self._on_stream():
            return next(epoch, "ended") is None

    def _on_stream(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream) if self._is_cuda else self._on_default()

    def _on_default(self) -> AbstractContextManager[object]:
        return nullcontext() if self._is_cuda else torch.compiler.set_stance("force_eager")


def _train_in_turns(lanes: Sequence[_Lane]) -> None:
    """An epoch of each, step by step."""
    under_way = [(lane, lane.epoch()) for lane in lanes]
    while under_way:
        under_way = [(lane, epoch) for lane, epoch in under_way if lane.goes_on(epoch)]
