"""How does a driver's process start? Where there is time, before there is a sweep for it.

A driver loads Ray Tune, Optuna and the store's libraries, which takes a second or two. Each is told its sweep
by a line on its standard input, so that one may have loaded them by then: see docs/decisions/0018.
"""

import json
import logging
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

__all__ = ["Order", "Starter", "await_order"]

_QUIET_SECONDS = 5.0
"""Since the last driver began: by then its first worker, which loads as much, has begun to train."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """What a driver is to do.

    Attributes:
        sweep_id, fencing_token: the sweep, and by which token its runner holds it.
        log: the file that the driver's output goes to.
        runner: the process that it ends with.
    """

    sweep_id: str
    fencing_token: int
    log: str
    runner: int


class Starter:
    """Starts drivers, and keeps one that waits for a sweep. Used from one thread.

    `command` is that of a process that calls `await_order`.
    """

    def __init__(self, command: Sequence[str], monotonic: Callable[[], float] = time.monotonic) -> None:
        self._command = command
        self._monotonic = monotonic
        self._waiting: subprocess.Popen[bytes] | None = None
        self._quiet_since: float | None = monotonic()

    def prepare(self) -> None:
        """Start one that waits, unless there is one, a driver began just now, or the last died waiting."""
        if self._waiting is not None and (status := self._waiting.poll()) is not None:
            _LOG.warning("the driver that waited ended with status %d; the next sweep starts its own", status)
            self.close()
            self._quiet_since = None  # the next might die as well
        if self._waiting is not None or self._quiet_since is None:
            return
        if self._monotonic() - self._quiet_since >= _QUIET_SECONDS:
            self._waiting = self._load()

    def start(self, order: Order) -> "subprocess.Popen[bytes]":
        """The process that drives the sweep from now on.

        Raises:
            OSError: the log cannot be written, or this machine starts no process.
        """
        self._quiet_since = self._monotonic()
        if self._waiting is not None:
            process, self._waiting = self._waiting, None
            try:
                _tell(process, order)
            except BrokenPipeError:  # it has ended since it was looked at
                process.kill()
                process.wait()
            else:
                return process
        with Path(order.log).open("ab") as log:
            process = self._load(log)
        with suppress(BrokenPipeError):  # it has died, and said why in the log
            _tell(process, order)
        return process

    def close(self) -> None:
        """End the one that waits."""
        if self._waiting is None:
            return
        self._waiting.kill()  # it holds nothing
        self._waiting.wait()
        assert self._waiting.stdin is not None
        self._waiting.stdin.close()
        self._waiting = None

    def _load(self, log: IO[bytes] | None = None) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(  # noqa: S603  (our own module)
            self._command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )


def _tell(process: "subprocess.Popen[bytes]", order: Order) -> None:
    assert process.stdin is not None
    with process.stdin as stdin:
        stdin.write(json.dumps(asdict(order)).encode() + b"\n")


def await_order() -> Order | None:
    """What this process is to do, read from its standard input; None where the runner ends before it tells.

    From then on the process's output goes to the order's log.
    """
    line = b""
    while not line.endswith(b"\n"):
        read = os.read(0, 4096)
        if not read:
            return None
        line += read
    order = Order(**json.loads(line))
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for output in (1, 2):
        os.dup2(log, output)
    os.close(log)
    return order
