"""Which processes of an instance can be killed, and how? `care-sweep serve`, and whoever carries its home."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from drivers import is_driving

__all__ = ["Serving", "Suspended", "lifetimes"]

_PATTERNS = {
    "service": "-m service",
    "runner": "-m care_sweep.run.runner",
    "driver": "-m care_sweep.run.driver",
    "worker": "ray::ImplicitFunc",  # Tune's name for a trial's process
    "raylet": "/raylet ",
    "gcs_server": "/gcs_server ",
}
_END_SECONDS = 60.0
_APPEARANCE_SECONDS = 10.0
_POLL_SECONDS = 0.05


class Serving:
    """`care-sweep serve` in a home of its own, for the length of a `with`."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self._home, self._arguments = home, arguments
        self.url = ""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "care_sweep.cli", "serve", "--port", "0", "--json", *self._arguments]
        self._log = (self._home / "serve.log").open("w")
        self._process = subprocess.Popen(
            command, env=self._environment(), stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the instance did not start; see {self._log.name}")
        self.url = json.loads(line)["url"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        self._process.kill()
        self._process.wait()
        self._log.close()

    def pids(self, victim: str) -> list[int]:
        """Whoever of that kind lives at this instant."""
        return _living(self._home, victim)

    def kill_once_there(
        self, victim: str, choose: Callable[[Sequence[int]], int | None] = lambda pids: pids[0]
    ) -> int | None:
        """SIGKILL the one of that kind that `choose` takes, and tell which; None where none comes in 10 s."""
        deadline = time.monotonic() + _APPEARANCE_SECONDS
        while time.monotonic() < deadline:
            pids = self.pids(victim)
            chosen = choose(pids) if pids else None
            if chosen is not None:
                with suppress(ProcessLookupError):
                    os.kill(chosen, signal.SIGKILL)
                    return chosen
            time.sleep(_POLL_SECONDS)
        return None

    @contextmanager
    def another_runner(self) -> Iterator[None]:
        """A second runner on the same store and cluster."""
        (runner,) = self.pids("runner")
        environ = Path(f"/proc/{runner}/environ").read_bytes().rstrip(b"\0").split(b"\0")
        environment = dict(entry.decode().split("=", 1) for entry in environ)
        with (self._home / "another-runner.log").open("w") as log:
            command = [sys.executable, "-m", "care_sweep.run.runner"]
            other = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            try:
                yield
            finally:
                other.terminate()
                other.wait(_END_SECONDS)

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "CARE_SWEEP_HOME": str(self._home)}


class Suspended:
    """Processes that sleep for the length of a `with`."""

    def __init__(self, home: Path, *victims: str) -> None:
        self._pids = [pid for victim in victims for pid in _living(home, victim)]
        assert len(self._pids) >= len(victims), "not all of them are there"

    def __enter__(self) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGSTOP)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in self._pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def lifetimes(pids: Sequence[int]) -> set[tuple[int, str]]:
    """Those of them that live, each with the instant of its start: a number may be given again."""
    found = set()
    for pid in pids:
        with suppress(OSError):
            state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
            if state != "Z":
                found.add((pid, rest[18]))
    return found


def _living(home: Path, victim: str) -> list[int]:
    found = _processes(home, _PATTERNS[victim])
    return [pid for pid in found if is_driving(pid)] if victim == "driver" else found


def _processes(home: Path, pattern: str) -> list[int]:
    """Processes that carry this home in their environment and the pattern in their command."""
    marker, found = f"CARE_SWEEP_HOME={home}\0".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another's
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if pattern in command and marker in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found
