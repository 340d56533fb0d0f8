"""What is a pack of trials that run at once? One of them is of clients of a Multi-Process Service."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Protocol

from care_sweep.learn.packing import Order, PackError, Processes

__all__ = ["Pack", "under_mps"]

_MPS = "nvidia-cuda-mps-control"


class Pack(Protocol):
    """Trials that run at once."""

    def prepare(self, order: Order, num_trials: int) -> None:
        """Build so many trials anew, each warm and ready; those of before are gone."""

    def run(self, num_trials: int, seconds: float) -> Sequence[float]:
        """Images a second of each of the first trials, all at once for that long.

        Raises:
            PackError: there are fewer trials, or one of them failed.
        """


@contextmanager
def under_mps() -> Iterator[Processes]:
    """Processes that are clients of a Multi-Process Service of their own.

    Raises:
        PackError: the service could not be started.
    """
    with TemporaryDirectory(prefix="mps-") as folder:
        names = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")
        environment = {**os.environ, **dict.fromkeys(names, folder)}
        _control(["-d"], environment)
        try:
            with _environment(dict.fromkeys(names, folder)), Processes() as pack:
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
