"""How do several trials run at once on one device, a process each?

The processes are there from the start and build their trials on demand, so that neither their start nor a
trial's warm-up is timed. On a CPU each has its share of the threads. On a GPU they share it by time, or as
clients of NVIDIA's Multi-Process Service.
"""

import gc
import os
import subprocess
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Protocol, Self

import torch
import torch.multiprocessing
from our_trial import OurTrial, random_images

__all__ = ["Order", "Pack", "PackError", "Processes", "under_mps"]

_SIDE = 32
_LONGEST_SECONDS = 400.0  # until a process has built its trial and warmed it
_START_SECONDS = 0.3  # from the order to run to the instant at which all start
_MPS = "nvidia-cuda-mps-control"


@dataclass(frozen=True)
class Order:
    """Which trial is to be built; an epoch has `num_images` images."""

    encoder: str
    batch_size: int
    num_images: int
    device: str
    precision: str


class PackError(RuntimeError):
    """A trial could not be built or run, or there is no such way here; the others may go on."""


class Pack(Protocol):
    """Trials that run at once."""

    def prepare(self, order: Order) -> None:
        """Build the trials anew, each warm and ready; those of before are gone."""

    def run(self, num_trials: int, seconds: float) -> Sequence[float]:
        """Images a second of each of the first trials, all at once for that long.

        Raises:
            PackError: there are fewer trials, or one of them failed.
        """


class Processes:
    """A pack of processes, for the length of a `with`."""

    def __init__(self, num_trials: int) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(num_trials):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self._errors: list[str | None] = [None] * num_trials  # of the trials that could not be built

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()

    def prepare(self, order: Order) -> None:
        """The first alone, so that what it compiles is there for the others; then they at once."""
        self._errors = []
        for pipes in (self._pipes[:1], self._pipes[1:]):
            _tell(pipes, (_prepare, order, len(self._pipes)))
            self._errors += [_hear(pipe, _LONGEST_SECONDS)[1] for pipe in pipes]

    def run(self, num_trials: int, seconds: float) -> list[float]:
        errors = [error for error in self._errors[:num_trials] if error is not None]
        if errors:
            raise PackError(errors[0])
        pipes = self._pipes[:num_trials]
        start = time.monotonic() + _START_SECONDS
        _tell(pipes, (_run, num_trials, start, seconds))
        answers = [_hear(pipe, _LONGEST_SECONDS + seconds) for pipe in pipes]
        if errors := [error for _, error in answers if error is not None]:
            raise PackError(errors[0])
        return [rate for rate, _ in answers]


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


def _serve(pipe: Connection) -> None:
    """Carry out commands, (function, arguments...), until the pipe is closed."""
    held: list[OurTrial] = []
    while True:
        try:
            action, *arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            pipe.send((action(held, *arguments), None))
        except Exception:  # noqa: BLE001  (whatever it is, it is told, and the process goes on)
            pipe.send((None, traceback.format_exc(limit=-3)))


def _prepare(held: list[OurTrial], order: Order, num_processes: int) -> None:
    held.clear()
    gc.collect()
    if order.device == "cuda":
        torch.cuda.empty_cache()
    _share_threads(num_processes)
    held.append(
        OurTrial(
            order.encoder,
            random_images(order.num_images, _SIDE),
            batch_size=order.batch_size,
            device=torch.device(order.device),
            precision=order.precision,
        )
    )


def _run(held: list[OurTrial], num_processes: int, start: float, seconds: float) -> float:
    """Images a second of the epochs that end before the last instant; of the first one at least."""
    (trial,) = held
    _share_threads(num_processes)
    time.sleep(max(0.0, start - time.monotonic()))
    num_images, ended = 0.0, start
    while True:
        amount, now = trial.turn().amount, time.monotonic()
        if num_images and now > start + seconds:
            return num_images / (ended - start)
        num_images, ended = num_images + amount, now


def _share_threads(num_processes: int) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_processes))


# --- the Multi-Process Service ------------------------------------------------------------------------------


@contextmanager
def under_mps(num_trials: int) -> Iterator[Processes]:
    """Processes that are clients of a Multi-Process Service of their own.

    Raises:
        PackError: the service could not be started.
    """
    with TemporaryDirectory(prefix="mps-") as folder:
        names = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")
        environment = {**os.environ, **dict.fromkeys(names, folder)}
        _control(["-d"], environment)
        try:
            with _environment(dict.fromkeys(names, folder)):
                pack = Processes(num_trials)
            with pack:
                yield pack
        finally:
            _control([], environment, "quit\n")


def _control(arguments: Sequence[str], environment: dict[str, str], said: str = "") -> None:
    try:
        done = subprocess.run(
            [_MPS, *arguments],
            env=environment,
            input=said,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PackError(f"no Multi-Process Service: {error}") from error
    if done.returncode:
        raise PackError(f"no Multi-Process Service: {_MPS} answered {done.returncode}, {done.stdout.strip()}")


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Variables for the processes that are started within."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
