"""What does a local Ray need? Its command, its ports, its secret, and a folder with a short name."""

import os
import secrets
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = [
    "RayPorts",
    "free_port",
    "ray_command",
    "ray_environment",
    "ray_scratch",
    "ray_token",
    "vital_processes",
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
    def free(cls) -> "RayPorts":
        return cls(free_port(), free_port(8265), free_port(), free_port())


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
    }


def ray_command(ports: RayPorts, scratch: Path, num_cpus: int | None, num_gpus: int | None) -> list[str]:
    """A head on this machine, in the foreground: it ends when one of its processes does."""
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


def vital_processes(head: int) -> set[int]:
    """The living GCS and raylet among the children of the process `head`, as Linux tells them."""
    found = set()
    try:
        for child in Path(f"/proc/{head}/task/{head}/children").read_text().split():
            name, state = Path(f"/proc/{child}/stat").read_text().partition("(")[2].rsplit(") ", 1)
            if name in _VITAL and state[0] != "Z":
                found.add(int(child))
    except OSError:
        pass  # it has just ended, or this is no Linux
    return found


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
