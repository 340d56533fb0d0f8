"""How do a service, a runner and a local Ray become one command? As child processes of this one.

This process imports none of what it starts. A part that dies is started again. Ctrl-C or SIGTERM ends the
children in order; if this process is killed, the kernel tells them. Sweeps that were running go on.
"""

import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from care_sweep.errors import CareSweepError
from care_sweep.local_ray import (
    RayPorts,
    free_port,
    ray_command,
    ray_environment,
    ray_scratch,
    ray_token,
    vital_processes,
)
from care_sweep.settings import Settings

__all__ = ["Instance", "running", "serve"]

_START_SECONDS = 120.0
_STOP_SECONDS = 15.0
_MOST_EARLY_DEATHS, _EARLY_SECONDS = 5, 10.0  # so many in a row, so soon after a start, are no bad luck
_PR_SET_PDEATHSIG = 1  # prctl(2)
_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Instance:
    """A running instance: its parts, where to find them, and how one that died is started again.

    Attributes:
        url: where the service listens.
        dashboard_url, token_path: of the local Ray; None where RAY_ADDRESS names a cluster.
        log_directory: a log for each part.
    """

    def __init__(self, settings: Settings, host: str, port: int, logs: Path) -> None:
        self.url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"  # noqa: S104
        self.dashboard_url: str | None = None
        self.token_path: Path | None = None
        self.log_directory = logs
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, list[str]] = {
            "service": [sys.executable, "-m", "service", "--host", host, "--port", str(port)],
            "runner": [sys.executable, "-m", "care_sweep.run.runner"],
        }
        self._environment = {**os.environ, "CARE_SWEEP_HOME": str(settings.home)}
        self._started_at: dict[str, float] = {}
        self._early_deaths: dict[str, int] = {}
        self._vital: set[int] = set()

    def plan_ray(self, ports: RayPorts, token_path: Path, command: list[str]) -> None:
        """Have a local Ray among the parts, at the same address however often it is started."""
        self.token_path, self.dashboard_url = token_path, f"http://127.0.0.1:{ports.dashboard}"
        self._commands["ray"] = command
        self._environment |= ray_environment(token_path)
        self._environment["RAY_ADDRESS"] = f"127.0.0.1:{ports.gcs}"

    def start(self) -> None:
        """Start all parts and wait until they answer.

        Raises:
            CareSweepError: one does not come up.
        """
        self._start("service")
        self._start_ray_and_runner()
        self._wait_for(f"{self.url}/healthz")  # the storage may be away for a while

    def tend(self) -> str | None:
        """Start again what has ended by itself; what that was, in words, or None where all parts run.

        With Ray go the runner and its drivers, whose connections died with it: all sweeps go on from the
        store.

        Raises:
            CareSweepError: parts die again and again, or one does not come up.
        """
        dead = next((name for name, process in self.processes.items() if process.poll() is not None), None)
        if dead is None and "ray" in self.processes:
            alive = vital_processes(self.processes["ray"].pid)
            dead = None if self._vital <= alive else "ray"  # it takes half a minute to notice by itself
            self._vital |= alive
        if dead is None:
            return None
        status = self.processes[dead].returncode
        log = self.log_directory / f"{dead}.log"
        is_early = time.monotonic() - self._started_at[dead] < _EARLY_SECONDS
        self._early_deaths[dead] = self._early_deaths.get(dead, 0) + 1 if is_early else 0
        if self._early_deaths[dead] == _MOST_EARLY_DEATHS:
            raise CareSweepError(
                f"the {dead} ended soon after its start {_MOST_EARLY_DEATHS} times in a row, "
                f"at last with status {status}; see {log}"
            )
        if dead == "ray":
            self.stop("ray", grace_seconds=0)  # half of it cannot end in order
            self.stop("runner", grace_seconds=5)
            self._vital.clear()
            self._start_ray_and_runner()
        else:
            self.stop(dead)
            self._start(dead)
        how = "lost a process" if status is None else f"ended by itself with status {status}"
        return f"the {dead} {how} and was started again; see {log}"

    def stop(self, *names: str, grace_seconds: float = _STOP_SECONDS) -> None:
        """End these parts, in order, and whoever of their process groups has not gone with them by then."""
        for name in names:
            process = self.processes.pop(name, None)
            if process is None:
                continue
            if grace_seconds:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(grace_seconds)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _start_ray_and_runner(self) -> None:
        if "ray" in self._commands:
            assert self.token_path is not None
            self._start("ray")
            token = {"Authorization": f"Bearer {self.token_path.read_text()}"}
            self._wait_for(f"{self.dashboard_url}/api/version", token)
        self._start("runner")

    def _start(self, name: str) -> None:
        log = self.log_directory / f"{name}.log"
        mode = "ab" if name in self._started_at else "wb"  # a log of this instance's whole life
        self._started_at[name] = time.monotonic()
        with log.open(mode) as output:
            self.processes[name] = subprocess.Popen(  # noqa: S603  (our own modules, Ray's, our arguments)
                self._commands[name],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is ours to pass on, in order
                preexec_fn=_end_with_parent,  # noqa: PLW1509  (this process has no threads)
            )

    def _wait_for(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        deadline = time.monotonic() + _START_SECONDS
        request = urllib.request.Request(url, headers=dict(headers or {}))  # noqa: S310  (http, built here)
        while time.monotonic() < deadline:
            for name, process in self.processes.items():
                if process.poll() is not None:
                    log = self.log_directory / f"{name}.log"
                    tail = log.read_text(errors="replace")[-2000:].rstrip()
                    raise CareSweepError(f"the {name} did not start; {log} ends with:\n{tail}")
            try:
                with urllib.request.urlopen(request, timeout=2):  # noqa: S310
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise CareSweepError(f"{url} did not answer within {_START_SECONDS:.0f} s; see {self.log_directory}")


def serve(
    settings: Settings,
    *,
    host: str,
    port: int,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    as_json: bool = False,
) -> int:
    """Run an instance until SIGINT, SIGTERM or SIGHUP, starting again what dies of it.

    The exit status: 0, or 1 where a part dies again and again.
    """
    for number in _ENDINGS:
        signal.signal(number, signal.default_int_handler)
    try:
        with running(settings, host=host, port=port, num_cpus=num_cpus, num_gpus=num_gpus) as instance:
            _say_where(instance, as_json=as_json)
            while True:
                if (said := instance.tend()) is not None:
                    print(said, file=sys.stderr, flush=True)
                time.sleep(0.2)
    except KeyboardInterrupt:
        if not as_json:
            print("stopped; sweeps that were running go on at the next start", flush=True)
        return 0


@contextmanager
def running(
    settings: Settings,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
) -> Iterator[Instance]:
    """A service, a runner and, unless RAY_ADDRESS names a cluster, a local Ray, for the length of a `with`.

    Raises:
        CareSweepError: the home cannot be used, another instance uses it, the port is taken, or a process
            does not come up.
    """
    logs = _prepare_home(settings.home)
    with ExitStack() as stack:
        stack.enter_context(_only_instance(settings.home))
        shutil.rmtree(settings.scratch_directory, ignore_errors=True)
        instance = Instance(settings, host, port or free_port(), logs)
        if settings.ray_address is None:
            scratch, ports = stack.enter_context(ray_scratch(settings.home)), RayPorts.free()
            command = ray_command(ports, scratch, num_cpus, num_gpus)
            instance.plan_ray(ports, ray_token(settings.home), command)
        stack.callback(_stop_all, instance)  # before Ray's scratch directory goes
        instance.start()
        yield instance


def _say_where(instance: Instance, *, as_json: bool) -> None:
    if as_json:
        where = {
            key: getattr(instance, key) for key in ("url", "dashboard_url", "token_path", "log_directory")
        }
        print(json.dumps(where, default=str), flush=True)
        return
    print(f"service    {instance.url}  (API documentation at {instance.url}/docs)")
    if instance.dashboard_url and instance.token_path:
        print(f"dashboard  {instance.dashboard_url}  log in with: cat {instance.token_path}")
    print(f"logs       {instance.log_directory}")
    print("Ctrl-C stops all of it.", flush=True)


# --- processes ---


def _end_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop_all(instance: Instance) -> None:
    """The runner first, for it ends its drivers; the service last, for it may still be asked."""
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDINGS}
    try:
        instance.stop("runner", "ray", "service")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


# --- what an instance owns ---


def _prepare_home(home: Path) -> Path:
    """The folder of logs, below a home that exists and can be written."""
    try:
        if not home.exists():
            home.mkdir(mode=0o700, parents=True)
        (home / "logs").mkdir(exist_ok=True)
    except OSError as error:
        raise CareSweepError(
            f"CARE_SWEEP_HOME {home} cannot be used: {error.strerror}; set it to a folder that you can write"
        ) from error
    return home / "logs"


@contextmanager
def _only_instance(home: Path) -> Iterator[None]:
    with (home / "instance.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CareSweepError(
                f"another instance is running in {home}: "
                "use it, stop it, or set CARE_SWEEP_HOME to another folder"
            ) from None
        yield
