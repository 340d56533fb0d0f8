"""How is one process of an instance started, ended, and started again after it has died?"""

import ctypes
import http.client
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

__all__ = ["START_SECONDS", "Part", "answers", "end_with_parent"]

START_SECONDS = 120.0
"""By then a part answers, or something is wrong."""

_STOP_SECONDS = 15.0
_EARLY_SECONDS = 10.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 2.0
_PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Part:
    """A process that is to run for as long as this one does, with a log of all its lives.

    Attributes:
        process: None before its start, and once it has been stopped.
        status: how it last ended by itself: an exit status, or a signal's number below 0.
    """

    def __init__(
        self, name: str, command: Sequence[str], log: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name, self.command, self.log = name, list(command), log
        self.process: subprocess.Popen[bytes] | None = None
        self.status: int | None = None
        self._clock = clock
        self._started_at: float | None = None
        self._pause_seconds = 0.0
        self._not_before = 0.0

    @property
    def seconds_of_life(self) -> float:
        """Since its last start."""
        return 0.0 if self._started_at is None else self._clock() - self._started_at

    @property
    def has_died(self) -> bool:
        """It was started and has ended by itself."""
        return self.process is not None and self.process.poll() is not None

    @property
    def has_failed(self) -> bool:
        """It has ended by itself, and nobody killed it."""
        return self.has_died and self.process is not None and self.process.returncode > 0

    @property
    def is_due(self) -> bool:
        """It does not run and shall."""
        return self.process is None and self._clock() >= self._not_before

    def start(self, environment: Mapping[str, str]) -> None:
        mode = "wb" if self._started_at is None else "ab"
        self._started_at = self._clock()
        with self.log.open(mode) as output:
            self.process = subprocess.Popen(  # noqa: S603  (our own modules, Ray's, our arguments)
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is ours to pass on, in order
                preexec_fn=end_with_parent,  # noqa: PLW1509  (this process has no threads)
            )

    def stop(self, *, grace_seconds: float = _STOP_SECONDS) -> None:
        """End it, and whoever of its process group has not gone with it by then."""
        if self.process is None:
            return
        if grace_seconds:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(grace_seconds)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    def bury(self, how: str | None = None) -> str:
        """Clear away what has died, or is to die for the reason `how`; what became of it, in words.

        It is due again at once, or after a pause that grows where it dies soon after its start time and
        again. It never stops being due: what it lacks may come back, as a database does.
        """
        assert self.process is not None
        self.status = self.process.poll()
        is_early = self.seconds_of_life < _EARLY_SECONDS
        longer = min(max(2 * self._pause_seconds, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
        self._pause_seconds = longer if is_early else 0.0
        self._not_before = self._clock() + self._pause_seconds
        self.stop(grace_seconds=0)  # half of it cannot end in order
        what = how or f"ended by itself with status {self.status}"
        when = f" in {self._pause_seconds:g} s" if self._pause_seconds else ""
        said = f"the {self.name} {what} and is started again{when}; see {self.log}"
        last_line = "" if how else self.last_words().rpartition("\n")[2]
        return f"{said}, which ends with: {last_line}" if last_line else said

    def last_words(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-2000:].rstrip()


def answers(url: str, headers: Mapping[str, str] | None = None) -> bool:
    """Whether somebody at the URL answers as is hoped, with a status of 2xx."""
    request = urllib.request.Request(url, headers=dict(headers or {}))  # noqa: S310  (http, built here)
    try:
        with urllib.request.urlopen(request, timeout=2):  # noqa: S310
            return True
    except (OSError, http.client.HTTPException):  # the latter is no HTTP at all
        return False


def end_with_parent(how: signal.Signals = signal.SIGTERM) -> None:
    """Have this process sent the signal when the thread that started it ends; on Linux only."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, how)
