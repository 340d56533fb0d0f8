"""How does a driver's process start? Where there is time, before there is a sweep for it.

A driver loads Ray Tune, Optuna and the store's libraries, which takes a second or two. Each is told its sweep
by a line on its standard input, so that one may have loaded them by then: see docs/decisions/0018.
"""

import logging
import math
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

__all__ = ["Order", "Starter", "await_order"]

_QUIET_SECONDS = 5.0
"""Since the last driver began: by then its first worker, which loads as much, has begun to train."""

_END_SECONDS = 3.0
_LOG = logging.getLogger(__name__)


class Order(BaseModel):
    """The sweep that a driver is to drive, the token by which its runner holds it, and its log."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sweep_id: str
    fencing_token: int
    log: Path


class Starter:
    """Starts drivers, and keeps one that waits for a sweep. Used from one thread.

    `command` is that of a process that calls `await_order`.
    """

    def __init__(self, command: Sequence[str], monotonic: Callable[[], float] = time.monotonic) -> None:
        self._command = command
        self._monotonic = monotonic
        self._waiting: subprocess.Popen[bytes] | None = None
        self._quiet_since = monotonic()

    def prepare(self) -> None:
        """Start one that waits, unless there is one or another began just now."""
        if self._waiting is not None and (status := self._waiting.poll()) is not None:
            _LOG.warning("the driver that waited ended with status %d: the next sweep's is not ready", status)
            self.close()
            self._quiet_since = math.inf
        if self._waiting is None and self._monotonic() - self._quiet_since >= _QUIET_SECONDS:
            self._waiting = self._load()

    def start(self, order: Order) -> "subprocess.Popen[bytes]":
        """The process that drives the sweep from now on."""
        process, self._waiting = self._waiting or self._load(), None
        self._quiet_since = self._monotonic()
        try:
            _tell(process, order)
        except BrokenPipeError:  # it has ended since it was looked at
            process.wait()
            process = self._load()
            _tell(process, order)
        return process

    def close(self) -> None:
        """End the one that waits."""
        if self._waiting is None:
            return
        self._waiting.terminate()
        try:
            self._waiting.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._waiting.kill()
            self._waiting.wait()
        assert self._waiting.stdin is not None
        self._waiting.stdin.close()
        self._waiting = None

    def _load(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(  # noqa: S603  (our own module)
            self._command, stdin=subprocess.PIPE, start_new_session=True
        )


def _tell(process: "subprocess.Popen[bytes]", order: Order) -> None:
    assert process.stdin is not None
    with process.stdin as stdin:
        stdin.write(order.model_dump_json().encode() + b"\n")


def await_order() -> Order | None:
    """What this process is to drive, and its output goes to that log from now on; None if its runner ends.

    It stops to read its standard input, whose other end the runner holds until then.
    """
    line = b""
    while not line.endswith(b"\n"):
        read = os.read(0, 4096)
        if not read:
            return None
        line += read
    order = Order.model_validate_json(line)
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for output in (1, 2):
        os.dup2(log, output)
    os.close(log)
    return order
