"""How many trials share a device best? Timed as processes, which is what a fraction of a GPU is to Ray.

Each process builds its trial and warms it before anything is timed. On a CPU each has its share of the
threads; on a GPU they share it by time, or as NVIDIA's Multi-Process Service lets them where it runs.
"""

import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import torch
import torch.multiprocessing

from care_sweep.learn.data import Dataset, Split
from care_sweep.learn.train import epochs_alone, untrained
from care_sweep.spec import TrialConfig

__all__ = ["Order", "PackError", "Packing", "Processes", "keep_to_share", "time_packing"]

_LOG = logging.getLogger(__name__)
_LEAST_GAIN = 1.1  # of twice as many trials, or it is not worth the memory and the later word of each
_MOST_MEMORY = 0.85  # of what is free, for all trials together: their sizes differ, and allocators fragment
_SHARE_OF_ALLOCATOR = 0.9  # of a process's share of the memory; the rest is for its CUDA context
_TURN_SECONDS = 3.0
_FIRST_TURN_SECONDS = 400.0  # until a process has loaded, compiled and warmed its trial
_START_SECONDS = 0.3  # from the order to run to the instant at which all start
_END_SECONDS = 10.0


@dataclass(frozen=True)
class Order:
    """Which trial is to be built.

    Attributes:
        data: loads the images, in each process.
        num_steps: of an epoch that is timed, at most; all that the images make by default.
    """

    config: TrialConfig
    data: Callable[[], Dataset]
    device: str
    num_steps: int | None = None


@dataclass(frozen=True)
class Packing:
    """What was measured of several trials on one device.

    Attributes:
        rates: images a second of all trials together, by how many they were: 1, 2, 4...
        memory_bytes: of one trial at most, training or measuring, with all that its process takes.
        free_bytes: on the device before.
    """

    rates: Mapping[int, float]
    memory_bytes: int
    free_bytes: int

    @property
    def num_trials(self) -> int:
        """The best number at once: doubled as long as that gains a tenth and the memory is there."""
        best = 1
        while self.has_room_for(2 * best) and self.has_gained(2 * best):
            best *= 2
        return best

    def has_room_for(self, num_trials: int) -> bool:
        return num_trials * self.memory_bytes <= _MOST_MEMORY * self.free_bytes

    def has_gained(self, num_trials: int) -> bool:
        """Whether so many were timed, and faster together than half of them."""
        return self.rates.get(num_trials, 0.0) >= _LEAST_GAIN * self.rates[num_trials // 2]


class PackError(RuntimeError):
    """A trial could not be built or run, or there is no such way here; the others may go on."""


def time_packing(order: Order, most: int, *, seconds: float, turn_seconds: float = _TURN_SECONDS) -> Packing:
    """Time 1, 2, 4... trials at once, up to `most`, until more of them gain nothing or do not fit.

    The first trial also measures an encoder on all the images, as each does in its last epoch, so that its
    memory is known. Where trials are compiled, the first compiles for the others, and for those of the sweep
    on this machine.

    Args:
        seconds: after the first trial's turn, from when on no further number is tried.

    Raises:
        PackError: one trial alone cannot be built or run.
    """
    device = torch.device(order.device)
    free = _free_bytes(device)
    with Processes() as pack:
        pack.add(order, 1)
        surplus = pack.measure()
        memory = max(0, free - _free_bytes(device)) + surplus
        found = Packing({1: sum(pack.run(1, turn_seconds))}, memory, free)
        number, ends = 2, time.monotonic() + seconds
        while number <= most and found.has_room_for(number) and time.monotonic() < ends:
            pack.add(order, number // 2)
            try:
                rate = sum(pack.run(number, turn_seconds))
            except PackError as error:  # the memory is somebody else's by now, say
                _LOG.warning("%d trials at once: %s", number, error)
                break
            found = Packing({**found.rates, number: rate}, memory, free)
            if not found.has_gained(number):
                break
            number *= 2
        return found


def keep_to_share(share: float, device: torch.device) -> None:
    """Let this process have no more of a GPU's memory than its share, so that who wants more fails alone.

    What it wants beyond is refused as `torch.OutOfMemoryError` before the neighbours have lost anything.
    """
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(_SHARE_OF_ALLOCATOR * share, device.index)


def _free_bytes(device: torch.device) -> int:
    """On a GPU whatever takes it, contexts of processes too; on a CPU the machine's memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Processes:
    """Trials that run at once, a process each, for the length of a `with`."""

    def __init__(self) -> None:
        self._context = torch.multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        self._errors: list[str | None] = []  # of the trials that could not be built

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def prepare(self, order: Order, num_trials: int) -> None:
        """Build so many trials anew, each warm and ready; those of before are gone."""
        self._close()
        self.add(order, 1)
        self.add(order, num_trials - 1)  # what the first has compiled is there for them

    def add(self, order: Order, num_trials: int) -> None:
        """Build so many more, all at once. One that cannot be built fails whoever runs it."""
        for _ in range(num_trials):
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        added = self._pipes[len(self._errors) :]
        _tell(added, (_build, order))
        self._errors += [_hear(pipe, _FIRST_TURN_SECONDS)[1] for pipe in added]

    def measure(self) -> int:
        """Have the first trial do what a last epoch does; the bytes it held beyond those it holds now.

        Raises:
            PackError: it could not.
        """
        return int(self._ask(1, (_measure,), _FIRST_TURN_SECONDS)[0])

    def run(self, num_trials: int, seconds: float) -> Sequence[float]:
        """Images a second of each of the first trials, all at once for that long.

        Raises:
            PackError: there are fewer trials, or one of them failed.
        """
        start = time.monotonic() + _START_SECONDS
        return self._ask(num_trials, (_run, num_trials, start, seconds), _FIRST_TURN_SECONDS + seconds)

    def _ask(self, num_trials: int, command: tuple[Any, ...], seconds: float) -> list[Any]:
        if num_trials > len(self._errors):
            raise PackError(f"there are {len(self._errors)} trials, not {num_trials}")
        if errors := [error for error in self._errors[:num_trials] if error is not None]:
            raise PackError(errors[0])
        pipes = self._pipes[:num_trials]
        _tell(pipes, command)
        answers = [_hear(pipe, seconds) for pipe in pipes]
        if errors := [error for _, error in answers if error is not None]:
            raise PackError(errors[0])
        return [answer for answer, _ in answers]

    def _close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(_END_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
        self._pipes, self._processes, self._errors = [], [], []


def _tell(pipes: Sequence[Connection], command: tuple[Any, ...]) -> None:
    for pipe in pipes:
        try:
            pipe.send(command)
        except OSError:
            continue  # it has died, which hearing it will tell


def _hear(pipe: Connection, seconds: float) -> tuple[Any, str | None]:
    """The answer, or the error."""
    try:
        return pipe.recv() if pipe.poll(seconds) else (None, f"no answer in {seconds:.0f} s")
    except (EOFError, OSError):
        return None, "its process has died"


# --- in a process of the pack -------------------------------------------------------------------------------


@dataclass
class _Held:
    """What a process holds: its trial, warm."""

    order: Order
    data: Dataset
    num_images: int  # of an epoch
    epochs: Iterator[None]

    @property
    def device(self) -> torch.device:
        return torch.device(self.order.device)


def _serve(pipe: Connection) -> None:
    """Carry out commands, (function, arguments...), until the pipe is closed."""
    held: list[_Held] = []
    while True:
        try:
            action, *arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            pipe.send((action(held, *arguments), None))
        except Exception:  # noqa: BLE001  (whatever it is, it is told, and the process goes on)
            pipe.send((None, traceback.format_exc(limit=-3)))


def _build(held: list[_Held], order: Order) -> None:
    """The trial and its first epoch, in which it compiles and captures."""
    config, device = order.config, torch.device(order.device)
    data = order.data().on(device)
    num_steps = len(data.train.labels) // config.batch_size
    if order.num_steps is not None:
        num_steps = min(num_steps, order.num_steps)
    num_images = num_steps * config.batch_size
    epochs = epochs_alone(config, _with_few_images(data, num_images), device=device)
    next(epochs)
    held.append(_Held(order, data, num_images, epochs))


def _with_few_images(data: Dataset, num_images: int) -> Dataset:
    """The first train images, or all where there are too few for a batch, which the trial will say."""
    if num_images == 0:
        return data
    train = Split(data.train.images[:num_images], data.train.labels[:num_images])
    return replace(data, train=train)


def _measure(held: list[_Held]) -> int:
    (mine,) = held
    untrained(mine.order.config, mine.data, device=mine.device)
    if mine.device.type != "cuda":
        return 0
    return torch.cuda.max_memory_reserved(mine.device) - torch.cuda.memory_reserved(mine.device)


def _run(held: list[_Held], num_processes: int, start: float, seconds: float) -> float:
    """Images a second of the epochs that end before the last instant; of the first one at least."""
    (mine,) = held
    if mine.device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_processes))
    time.sleep(max(0.0, start - time.monotonic()))
    num_images, ended = 0, start
    while True:
        next(mine.epochs)
        now = time.monotonic()
        if num_images and now > start + seconds:
            return num_images / (ended - start)
        num_images, ended = num_images + mine.num_images, now
