"""How do a service, a runner and a local Ray become one command? As child processes of this one.

This process imports none of what it starts. A part that dies is started again. Ctrl-C or SIGTERM ends the
children in order; if this process is killed, the kernel tells them. Sweeps that were running go on.
"""

import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from care_sweep.errors import CareSweepError
from care_sweep.local_ray import (
    LocalRay,
    RayPorts,
    free_port,
    ray_command,
    ray_environment,
    ray_scratch,
    ray_token,
)
from care_sweep.part import START_SECONDS, Part, answers
from care_sweep.settings import Settings

__all__ = ["Instance", "running", "serve"]

_NUM_RAY_STARTS = 3
_POLL_SECONDS = 0.2
_OF_CLIENTS = ("CARE_SWEEP_TOKEN", "CARE_SWEEP_TOKEN_PATH")
_OF_THE_DATABASE = ("CARE_SWEEP_DATABASE_URL", "PG")
"""How the names of settings begin that lead to the database, libpq's too."""

_REACHED_BY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
"""Where this machine reaches a service that listens on all of its addresses."""

_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Instance:
    """A running instance: its parts, where to find them, and how one that died is started again.

    Attributes:
        url: where the service listens.
        ray, token_path: the local Ray; None where RAY_ADDRESS names a cluster.
        log_directory: a log for each part.
    """

    def __init__(self, settings: Settings, host: str, port: int, logs: Path) -> None:
        reached = _REACHED_BY.get(host, host)
        self.url = f"http://{f'[{reached}]' if ':' in reached else reached}:{port}"
        self.log_directory = logs
        self.token_path: Path | None = None
        service = [sys.executable, "-m", "service", "--host", host, "--port", str(port)]
        self.service = Part("service", service, logs / "service.log")
        self.runner = Part("runner", [sys.executable, "-m", "care_sweep.run.runner"], logs / "runner.log")
        self.ray: LocalRay | None = None
        compiled = str(settings.home / "torchinductor")
        self._of_trials = {"TORCHINDUCTOR_CACHE_DIR": compiled}  # unless the user says otherwise
        self._environment = {**os.environ, "CARE_SWEEP_HOME": str(settings.home)}
        for name in _OF_CLIENTS:
            self._environment.pop(name, None)

    @property
    def requires_tokens(self) -> bool:
        """Whether the service refuses who shows none, as it says itself."""
        return not answers(f"{self.url}/v1/search-spaces")

    @property
    def dashboard_url(self) -> str | None:
        """Of the local Ray."""
        return None if self.ray is None else self.ray.dashboard_url

    def plan_ray(self, token_path: Path, scratch: Path, command: Callable[[RayPorts], list[str]]) -> None:
        """Have a local Ray among the parts. Its own and its workers' temporary files lie in `scratch`: its
        dashboard leaves some, and so does who is killed."""
        self.token_path = token_path
        self.ray = LocalRay(self.log_directory, token_path.read_text(), command)
        self._environment |= ray_environment(token_path)
        self._of_trials["TMPDIR"] = str(scratch)
        self._environment.pop("RAY_AUTH_TOKEN", None)  # another cluster's; Ray would prefer it

    def start(self) -> None:
        """Start all parts and wait until they answer.

        Raises:
            CareSweepError: one does not come up. Ray is tried at several ports, for two instances that start
                at once may choose the same.
        """
        deadline, num_ray_starts = time.monotonic() + START_SECONDS, 1
        while not self._is_ready():
            if time.monotonic() > deadline:
                raise CareSweepError(
                    f"not all parts answered within {START_SECONDS:.0f} s; see {self.log_directory}"
                )
            for part in (self.service, self.ray, self.runner):
                if part is None or not part.has_failed:
                    continue
                num_ray_starts += part is self.ray
                if part is not self.ray or num_ray_starts > _NUM_RAY_STARTS:
                    raise CareSweepError(
                        f"the {part.name} did not start; {part.log} ends with:\n{part.last_words()}"
                    )
            self.tend()
            time.sleep(_POLL_SECONDS)

    def tend(self) -> list[str]:
        """Look at each part once and start what does not run; what has died of itself, in words.

        With Ray go the runner and its drivers, whose connections died with it: all sweeps go on from the
        store.
        """
        said = [part.bury() for part in (self.service, self.runner) if part.has_died]
        trouble = None if self.ray is None else self.ray.trouble()
        if self.ray is not None and trouble is not None:
            said.append(self.ray.bury(trouble))
        if self.service.is_due:
            self.service.start(self._environment)
        if self.ray is not None and self.ray.is_due:
            self.ray.start(self._of_trials | _for_trials(self._environment))
        if trouble is not None:
            self.runner.stop(grace_seconds=5)  # while Ray starts
        if self.ray is not None:
            self.ray.look()
        if self.runner.is_due:  # it loads its libraries while Ray starts, and waits for it
            address = {} if self.ray is None else {"RAY_ADDRESS": self.ray.address}
            self.runner.start(self._environment | address)
        return said

    def stop(self) -> None:
        """The runner first, for it ends its drivers; the service last, for it may still be asked."""
        for part in (self.runner, self.ray, self.service):
            if part is not None:
                part.stop()

    def _is_ready(self) -> bool:
        """Whether all answer; the storage may be away for a while, and the service runs all the same."""
        is_ray_up = self.ray is None or self.ray.is_up
        return is_ray_up and self.runner.process is not None and answers(f"{self.url}/healthz")


def _for_trials(environment: Mapping[str, str]) -> dict[str, str]:
    """What Ray hands on to the processes of trials, which need no database."""
    return {name: value for name, value in environment.items() if not name.startswith(_OF_THE_DATABASE)}


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

    The exit status: 0.
    """
    for number in _ENDINGS:
        signal.signal(number, signal.default_int_handler)
    try:
        with running(settings, host=host, port=port, num_cpus=num_cpus, num_gpus=num_gpus) as instance:
            _say_where(instance, as_json=as_json)
            while True:
                for said in _tended(instance):
                    print(said, file=sys.stderr, flush=True)
                time.sleep(_POLL_SECONDS)
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
            scratch = stack.enter_context(ray_scratch(settings.home))
            instance.plan_ray(
                ray_token(settings.home),
                scratch,
                lambda ports: ray_command(ports, scratch, num_cpus, num_gpus),
            )
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
    if instance.requires_tokens:
        print(f"service    {instance.url}  (it wants a token: `care-sweep token create NAME --scope submit`)")
    else:
        print(f"service    {instance.url}  (API documentation at {instance.url}/docs)")
    if instance.dashboard_url and instance.token_path:
        print(f"dashboard  {instance.dashboard_url}  log in with: cat {instance.token_path}")
    print(f"logs       {instance.log_directory}")
    print("Ctrl-C stops all of it.", flush=True)


# --- processes ---


def _tended(instance: Instance) -> list[str]:
    before = instance.dashboard_url
    said = instance.tend()
    if instance.dashboard_url != before:
        said.append(f"the dashboard is now at {instance.dashboard_url}")
    return said


def _stop_all(instance: Instance) -> None:
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDINGS}
    try:
        instance.stop()
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
