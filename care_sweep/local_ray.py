"""What does a local Ray need? Its command, ports and secret, a short-named folder, and a watch on it."""

import os
import secrets
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from care_sweep.part import START_SECONDS, Part, answers

__all__ = [
    "LocalRay",
    "RayPorts",
    "free_port",
    "ray_command",
    "ray_environment",
    "ray_scratch",
    "ray_token",
]

_SCRATCH = "care-sweep-ray-"
_VITAL = ("gcs_server", "raylet")


@dataclass(frozen=True)
class RayPorts:
    """Ports that were free a moment ago."""

    gcs: int
    dashboard: int
    agent: int
    client: int

    @classmethod
    def free(cls, *, dashboard: int = 8265) -> "RayPorts":
        """Any, but for the one that the dashboard prefers."""
        return cls(free_port(), free_port(dashboard), free_port(), free_port())


def free_port(preferred: int = 0) -> int:
    """The preferred port if it is free, else any."""
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself will
        try:
            candidate.bind(("127.0.0.1", preferred))
        except OSError:
            candidate.bind(("127.0.0.1", 0))
        return int(candidate.getsockname()[1])


def ray_environment(token_path: Path) -> dict[str, str]:
    """What Ray's own processes and those that talk to them must have in their environment."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "0",  # its kills abort a whole sweep, whatever max_failures says
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else 127.0.0.1 is made the machine's address, see below
    }


def ray_command(ports: RayPorts, scratch: Path, num_cpus: int | None, num_gpus: int | None) -> list[str]:
    """A head on this machine, in the foreground: it ends when one of its processes does.

    All its ports are of the loopback interface. Ray takes an address of 127.0.0.1 at its word, and does not
    listen on all interfaces, only where it may not form clusters, as on macOS: `ray_environment` says so.
    """
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


class LocalRay(Part):
    """A local Ray, at the same ports however often it is started, unless it does not come up there.

    Attributes:
        is_up: its dashboard has answered since its last start.
    """

    def __init__(self, logs: Path, token: str, command: Callable[[RayPorts], list[str]]) -> None:
        self.ports = RayPorts.free()
        super().__init__("ray", command(self.ports), logs / "ray.log")
        self.is_up = False
        self._token, self._command_at = token, command
        self._vital: set[int] = set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.ports.gcs}"

    @property
    def dashboard_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.dashboard}"

    def trouble(self) -> str | None:
        """Why it must be started again; None where it runs, or may yet come up."""
        if self.process is None:
            return None
        if self.has_died:
            return f"ended by itself with status {self.process.returncode}"
        living, dead = _vital_processes(self.process.pid)
        if dead or not self._vital <= living:
            return "lost a process"  # it takes half a minute to notice by itself
        self._vital |= living
        if not self.is_up and self.seconds_of_life > START_SECONDS:
            return f"did not answer at {self.dashboard_url} within {START_SECONDS:.0f} s"
        return None

    def bury(self, how: str | None = None) -> str:
        """As of any part. Where it did not come up, its ports may be another's: it gets new ones."""
        said = super().bury(how)
        if not self.is_up:
            self.ports = RayPorts.free(dashboard=0)
            self.command = self._command_at(self.ports)
        self.is_up = False
        self._vital.clear()
        return said

    def look(self) -> None:
        """See whether it has come up. Another instance's dashboard at this port would refuse the token."""
        if self.process is not None and not self.is_up:
            token = {"Authorization": f"Bearer {self._token}"}
            self.is_up = answers(f"{self.dashboard_url}/api/version", token)


def _vital_processes(head: int) -> tuple[set[int], set[int]]:
    """GCS and raylet among the children of the process `head`, living and dead, as Linux tells them."""
    living: set[int] = set()
    dead: set[int] = set()
    children: list[str] = []
    with suppress(OSError):  # it has just ended, or this is no Linux
        children = Path(f"/proc/{head}/task/{head}/children").read_text().split()
    for child in children:
        with suppress(OSError):  # this one has
            name, state = Path(f"/proc/{child}/stat").read_text().partition("(")[2].rsplit(") ", 1)
            if name in _VITAL:
                (dead if state[0] == "Z" else living).add(int(child))
    return living, dead


def ray_token(home: Path) -> Path:
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
def ray_scratch(home: Path) -> Iterator[Path]:
    """Ray keeps sockets below it, whose paths may have 107 characters; the home's own may be too long.

    A link in the home remembers it, so that one left by a killed instance goes at the next start.
    """
    link = home / "ray-scratch"
    if link.is_symlink() and link.readlink().name.startswith(_SCRATCH):
        shutil.rmtree(link.readlink(), ignore_errors=True)
    with TemporaryDirectory(prefix=_SCRATCH, dir="/tmp", ignore_cleanup_errors=True) as path:
        link.unlink(missing_ok=True)
        link.symlink_to(path)
        try:
            yield Path(path)
        finally:
            link.unlink(missing_ok=True)
