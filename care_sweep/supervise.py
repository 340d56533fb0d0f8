"""How do a service, a runner and a local Ray become one command? As child processes of this one.

This process imports none of what it starts. Ctrl-C or SIGTERM ends the children in order; if this process is
killed, the kernel tells them. Sweeps that were running go on at the next start.
"""

import ctypes
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from care_sweep.errors import CareSweepError
from care_sweep.settings import Settings

__all__ = ["Instance", "running", "serve"]

_START_SECONDS = 120.0
_STOP_SECONDS = 15.0
_PR_SET_PDEATHSIG = 1  # prctl(2)
_RAY_SCRATCH = "care-sweep-ray-"
_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Instance:
    """A running instance and where to find it."""

    url: str
    dashboard_url: str | None
    token_path: Path | None
    log_directory: Path
    processes: Mapping[str, "subprocess.Popen[bytes]"]

    def find_dead(self) -> str | None:
        """The name of a process that has ended by itself."""
        return next((name for name, process in self.processes.items() if process.poll() is not None), None)


def serve(
    settings: Settings,
    *,
    host: str,
    port: int,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    as_json: bool = False,
) -> int:
    """Run an instance until SIGINT, SIGTERM or SIGHUP. The exit status: 0, or 1 where a part of it died."""
    for number in _ENDINGS:
        signal.signal(number, signal.default_int_handler)
    try:
        with running(settings, host=host, port=port, num_cpus=num_cpus, num_gpus=num_gpus) as instance:
            _say_where(instance, as_json=as_json)
            while (dead := instance.find_dead()) is None:
                time.sleep(0.2)
            print(f"the {dead} ended by itself; see {instance.log_directory / dead}.log", file=sys.stderr)
            return 1
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
    port = port or _free_port()
    logs = _prepare_home(settings.home)
    processes: dict[str, subprocess.Popen[bytes]] = {}
    environment = {**os.environ, "CARE_SWEEP_HOME": str(settings.home)}
    with ExitStack() as stack:
        stack.enter_context(_only_instance(settings.home))
        shutil.rmtree(settings.scratch_directory, ignore_errors=True)
        stack.callback(_stop, processes)
        command = [sys.executable, "-m", "service", "--host", host, "--port", str(port)]
        processes["service"] = _start("service", command, environment, logs)
        dashboard_url = token_path = None
        if settings.ray_address is None:
            token_path = _token(settings.home)
            environment |= _ray_environment(token_path)
            scratch = stack.enter_context(_short_directory(settings.home))
            ports = _RayPorts.free()
            command = _ray_command(ports, scratch, num_cpus, num_gpus)
            processes["ray"] = _start("ray", command, environment, logs)
            stack.callback(_stop, processes)  # Ray must be gone before its scratch directory
            dashboard_url = f"http://127.0.0.1:{ports.dashboard}"
            token = {"Authorization": f"Bearer {token_path.read_text()}"}
            _wait_for(f"{dashboard_url}/api/version", processes, logs, token)
            environment["RAY_ADDRESS"] = f"127.0.0.1:{ports.gcs}"
        command = [sys.executable, "-m", "care_sweep.run.runner"]
        processes["runner"] = _start("runner", command, environment, logs)
        url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"  # noqa: S104
        _wait_for(f"{url}/readyz", processes, logs, {})
        yield Instance(url, dashboard_url, token_path, logs, processes)


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


def _start(
    name: str, command: Sequence[str], environment: Mapping[str, str], logs: Path
) -> "subprocess.Popen[bytes]":
    with (logs / f"{name}.log").open("wb") as log:  # of this start; the sweeps' own logs are kept
        return subprocess.Popen(  # noqa: S603  (our own modules and Ray's, with arguments of our own)
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,  # Ctrl-C is ours to pass on, in order
            preexec_fn=_end_with_parent,  # noqa: PLW1509  (this process has no threads)
        )


def _end_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop(processes: Mapping[str, "subprocess.Popen[bytes]"]) -> None:
    """The runner first, for it ends its drivers; the service last, for it may still be asked."""
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDINGS}
    try:
        _end_all(processes)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _end_all(processes: Mapping[str, "subprocess.Popen[bytes]"]) -> None:
    for name in ("runner", "ray", "service"):
        process = processes.get(name)
        if process is None or process.poll() is not None:
            continue
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        with suppress(ProcessLookupError):  # whoever of its group has not gone with it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(
    url: str, processes: Mapping[str, "subprocess.Popen[bytes]"], logs: Path, headers: Mapping[str, str]
) -> None:
    deadline = time.monotonic() + _START_SECONDS
    request = urllib.request.Request(url, headers=dict(headers))  # noqa: S310  (http, built here)
    while time.monotonic() < deadline:
        for name, process in processes.items():
            if process.poll() is not None:
                tail = (logs / f"{name}.log").read_text(errors="replace")[-2000:].rstrip()
                raise CareSweepError(f"the {name} did not start; {logs / name}.log ends with:\n{tail}")
        try:
            with urllib.request.urlopen(request, timeout=2):  # noqa: S310
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise CareSweepError(f"{url} did not answer within {_START_SECONDS:.0f} s; see {logs}")


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


def _token(home: Path) -> Path:
    """The secret of the local Ray cluster, made once and readable by its owner alone."""
    path = home / "ray-token"
    if not path.is_file() or not path.read_text().strip():
        temporary = home / ".ray-token.part"
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        temporary.replace(path)
    path.chmod(0o600)
    return path


@contextmanager
def _short_directory(home: Path) -> Iterator[Path]:
    """Ray keeps sockets below it, whose paths may have 107 characters; the home's own may be too long.

    A link in the home remembers it, so that one left by a killed instance goes at the next start.
    """
    link = home / "ray-scratch"
    if link.is_symlink() and link.readlink().name.startswith(_RAY_SCRATCH):
        shutil.rmtree(link.readlink(), ignore_errors=True)
    with TemporaryDirectory(prefix=_RAY_SCRATCH, dir="/tmp", ignore_cleanup_errors=True) as path:
        link.unlink(missing_ok=True)
        link.symlink_to(path)
        try:
            yield Path(path)
        finally:
            link.unlink(missing_ok=True)


# --- a local Ray ---


@dataclass(frozen=True)
class _RayPorts:
    gcs: int
    dashboard: int
    agent: int
    client: int

    @classmethod
    def free(cls) -> "_RayPorts":
        return cls(_free_port(), _free_port(8265), _free_port(), _free_port())


def _free_port(preferred: int = 0) -> int:
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself will
        try:
            candidate.bind(("127.0.0.1", preferred))
        except OSError:
            candidate.bind(("127.0.0.1", 0))
        return int(candidate.getsockname()[1])


def _ray_environment(token_path: Path) -> dict[str, str]:
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "0",  # its kills abort a whole sweep, whatever max_failures says
    }


def _ray_command(ports: _RayPorts, scratch: Path, num_cpus: int | None, num_gpus: int | None) -> list[str]:
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += ["--node-ip-address=127.0.0.1", f"--port={ports.gcs}", f"--temp-dir={scratch}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={ports.dashboard}"]
    command += [f"--dashboard-agent-listen-port={ports.agent}", f"--ray-client-server-port={ports.client}"]
    command += ["--include-dashboard=true", "--disable-usage-stats"]
    if num_cpus is not None:
        command.append(f"--num-cpus={num_cpus}")
    if num_gpus is not None:
        command.append(f"--num-gpus={num_gpus}")
    return command
