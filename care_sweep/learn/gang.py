"""How do the other processes of a trial that trains on several devices start, work, and end?

The process that trains is rank 0. It starts one more for each further device and orders each of their tasks,
so that none of them waits within a collective for what rank 0 does between its epochs. They hold nothing that
is not rank 0's too, and end with it if it dies.

A process that dies in a task ends the task: the collectives of a CPU fail at once, those of a GPU are
aborted, for they would wait. One that only hangs is given up after a time. NCCL was seen by others to hang in
an abort too (NVIDIA/nccl issue 1777): then rank 0 ends itself, which to its trial is a lost worker.
"""

import logging
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing

from care_sweep.errors import CareSweepError, RankLost
from care_sweep.learn.ranks import Ranks
from care_sweep.part import end_with_parent

__all__ = ["Gang", "Work"]

_LOG = logging.getLogger(__name__)
_START_SECONDS = 300.0  # until a process has loaded torch and found its device
_COLLECTIVE_SECONDS = 300.0  # that a rank waits for another within a step
_LAST_WORDS_SECONDS = 2.0  # for the others to say what was wrong with them, once something is
_END_SECONDS = 10.0  # for the others to end in order
_ABORT_SECONDS = 60.0  # from a failure on GPUs to the end of the trial in this process, or of this process

Result = TypeVar("Result")
Work = Callable[..., Iterator[None]]
"""Takes (ranks, device, arguments...); each turn is a task that rank 0 has at the same time."""


@dataclass(frozen=True)
class _Failure:
    """Why a rank has not done its task.

    It lacked memory, failed otherwise, has died, does not answer, no longer heard another rank, or failed as
    the trial itself did, which rank 0 says too.
    """

    kind: Literal["memory", "other", "died", "silent", "deaf", "trial"]
    message: str


class Gang:
    """The processes of one trial, for the length of a `with`. With one rank there is only this one.

    Args:
        device: of rank 0. On GPUs the others have those after it.
        work: what the others do; it and the arguments are pickled.

    Raises:
        RankLost, torch.OutOfMemoryError, RuntimeError: on entry, as `run`.
    """

    def __init__(self, num_ranks: int, device: torch.device, work: Work, *arguments: Any) -> None:
        self._num_ranks, self._device = num_ranks, _further(device, 0)
        self._work, self._arguments = work, arguments
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        self._is_broken = False
        self._is_ending, self._has_ended = threading.Event(), threading.Event()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        if self._num_ranks == 1:
            return self
        try:
            self._start()
        except BaseException:
            self._break()
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def run(self, task: Callable[[], Result]) -> Result:
        """The task's result; the others do their next one meanwhile.

        Raises:
            RankLost: a process has died or does not answer.
            torch.OutOfMemoryError: a process lacked memory.
            RuntimeError: a process failed otherwise.
            Exception: what the task raised, unless that came of one of these.
        """
        if self._num_ranks == 1:
            return task()
        for pipe in self._pipes:
            with suppress(OSError):  # it has died, which hearing it will tell
                pipe.send(None)
        try:
            result = task()
        except BaseException as error:
            self._break()
            if not isinstance(error, Exception):
                raise
            cause = _cause(self._failures(_LAST_WORDS_SECONDS), error)
            if cause is None or cause is error:
                raise
            raise cause from error
        self._refuse_failures(_COLLECTIVE_SECONDS)
        return result

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="care-sweep-")
        meeting = Path(self._folder.name, "ranks")
        context = torch.multiprocessing.get_context("spawn")
        num_threads = max(1, torch.get_num_threads() // self._num_ranks)
        for rank in range(1, self._num_ranks):
            ours, theirs = context.Pipe()
            place = _Place(Ranks(rank, self._num_ranks), _further(self._device, rank), meeting)
            arguments = (theirs, os.getpid(), place, num_threads, self._work, self._arguments)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self._refuse_failures(_START_SECONDS)
        _Place(Ranks(0, self._num_ranks), self._device, meeting).join()
        self._refuse_failures(_COLLECTIVE_SECONDS)
        if self._device.type == "cuda":
            threading.Thread(target=self._abort_for_the_dead, name="ranks", daemon=True).start()

    def _refuse_failures(self, seconds: float) -> None:
        cause = _cause(self._failures(seconds), None)
        if cause is not None:
            self._break()
            raise cause

    def _failures(self, seconds: float) -> list[_Failure]:
        """Hear how each of the others has done its task; once one has failed, the rest are soon silent."""
        failures: list[_Failure] = []
        unheard = {pipe: f"rank {rank} of {self._num_ranks}" for rank, pipe in enumerate(self._pipes, 1)}
        while unheard and (ready := wait(list(unheard), seconds)):
            for pipe in ready:
                assert isinstance(pipe, Connection), "nothing else is waited for"
                failure = _hear(pipe, unheard.pop(pipe))
                if failure is not None:
                    failures.append(failure)
                    seconds = min(seconds, _LAST_WORDS_SECONDS)
        return [*failures, *(_Failure("silent", f"{name} does not answer") for name in unheard.values())]

    def _abort_for_the_dead(self) -> None:
        wait([process.sentinel for process in self._processes])
        if not self._is_ending.is_set():
            self._break()
            _abort()

    def _break(self) -> None:
        """The ranks can no longer end in order; on GPUs not even this one, if NCCL does not let go of it."""
        self._is_broken = True
        if self._device.type == "cuda":
            threading.Thread(target=self._end_in_time, name="ranks' end", daemon=True).start()

    def _end_in_time(self) -> None:
        if not self._has_ended.wait(_ABORT_SECONDS):
            _LOG.critical("NCCL does not let go of this process, which therefore ends")
            os._exit(1)

    def _end(self) -> None:
        self._is_ending.set()
        for pipe in self._pipes:
            pipe.close()
        if self._is_broken and self._device.type == "cuda":
            _abort()
        elif dist.is_initialized():
            dist.destroy_process_group()
        for process in self._processes:
            if not self._is_broken:
                process.join(_END_SECONDS)
            process.kill()
            process.join()
        self._pipes, self._processes = [], []
        if self._folder is not None:
            self._folder.cleanup()
        self._has_ended.set()


def _abort() -> None:
    """Leave torch's default group whatever the others do."""
    if dist.is_initialized():
        dist.distributed_c10d._abort_process_group()


def _hear(pipe: Connection, name: str) -> _Failure | None:
    try:
        answer: tuple[_Failure, str] | None = pipe.recv()
    except (EOFError, OSError):
        return _Failure("died", f"the process of {name} has died")
    if answer is None:
        return None
    failure, trace = answer
    _LOG.warning("%s: %s", name, trace)
    return _Failure(failure.kind, f"{name}: {failure.message}")


def _cause(failures: Sequence[_Failure], error: Exception | None) -> Exception | None:
    """What a task has failed of, given what rank 0 itself raised; a rank that fails takes others with it."""
    by_kind = {failure.kind: failure.message for failure in reversed(failures)}
    if "memory" in by_kind:
        return torch.OutOfMemoryError(by_kind["memory"])
    if "other" in by_kind:
        return RuntimeError(by_kind["other"])
    if "died" in by_kind:
        return RankLost(by_kind["died"])
    if error is not None and not isinstance(error, RankLost):
        return error
    if "trial" in by_kind:
        return RuntimeError(by_kind["trial"])
    return RankLost(failures[0].message) if failures else error


def _further(device: torch.device, rank: int) -> torch.device:
    return torch.device("cuda", (device.index or 0) + rank) if device.type == "cuda" else device


# --- in each process ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where a rank stands: its device, and the file in which the ranks find each other."""

    ranks: Ranks
    device: torch.device
    meeting: Path

    def join(self) -> None:
        """Make torch's default group. Processes of one node meet in a file and speak over loopback."""
        is_on_gpu = self.device.type == "cuda"
        if sys.platform == "linux":
            os.environ.setdefault("NCCL_SOCKET_IFNAME" if is_on_gpu else "GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group(
            "nccl" if is_on_gpu else "gloo",
            store=dist.FileStore(str(self.meeting), self.ranks.number),  # type: ignore[attr-defined]
            rank=self.ranks.rank,
            world_size=self.ranks.number,
            timeout=timedelta(seconds=_COLLECTIVE_SECONDS),
            device_id=self.device if is_on_gpu else None,
        )


def _serve(
    pipe: Connection, parent: int, place: _Place, num_threads: int, work: Work, arguments: tuple[Any, ...]
) -> None:
    """Say when it is there and when it has joined; then do a task at each word, until the pipe is closed.

    After a failure it does not wait for what the way out of Python would wait for.
    """
    end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        return
    try:
        torch.set_num_threads(num_threads)
        if place.device.type == "cuda":
            torch.cuda.set_device(place.device)
        pipe.send(None)
        place.join()
        pipe.send(None)
        tasks = work(place.ranks, place.device, *arguments)
        while _is_wanted(pipe):
            next(tasks)
            pipe.send(None)
        dist.destroy_process_group()
    except Exception as error:  # noqa: BLE001  (whatever it is, rank 0 hears of it)
        with suppress(OSError):  # unless it has gone
            pipe.send((_failure_of(error), traceback.format_exc()))
        os._exit(1)


def _is_wanted(pipe: Connection) -> bool:
    try:
        pipe.recv()
    except EOFError:
        return False
    return True


def _failure_of(error: Exception) -> _Failure:
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return _Failure("memory", message)
    if isinstance(error, RankLost):
        return _Failure("deaf", message)
    return _Failure("trial" if isinstance(error, CareSweepError) else "other", message)
