"""Which container engine do the tests use? The Docker that runs here, else a private one, else none."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["Engine", "running_engine"]

ROOT = Path(__file__).parents[2]
_SCRIPT = ROOT / "docker" / "container_engine.sh"


class Engine:
    """Docker's command line, and Compose's, with the environment that leads to the engine."""

    def __init__(self, environment: dict[str, str], compose: list[str]) -> None:
        self._environment, self._compose = environment, compose

    def docker(self, *arguments: str, timeout: float = 120) -> str:
        """What the command prints. AssertionError where it fails, with what it said."""
        return self._run(["docker", *arguments], self._environment, timeout)

    def compose(self, *arguments: str, settings: dict[str, str], timeout: float = 900) -> str:
        return self._run([*self._compose, *arguments], self._environment | settings, timeout)

    def build(self, file: str, tag: str) -> None:
        build = ["build", "--network", "host", "--tag", tag, "--file", str(ROOT / file), str(ROOT)]
        self.docker(*build, timeout=3000)

    @staticmethod
    def _run(command: list[str], environment: dict[str, str], timeout: float) -> str:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout


@contextmanager
def running_engine() -> Iterator[Engine]:
    """An engine. A private one is stopped at the end; its images stay below the temporary directory."""
    if _succeeds("docker", "info") and _succeeds("docker", "compose", "version"):
        yield Engine(dict(os.environ), ["docker", "compose"])
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("no Docker with Compose runs here, and a private one takes root and apt")
    folder = Path(tempfile.gettempdir()) / "care-sweep-containers"
    folder.mkdir(exist_ok=True)
    start = f"container_engine_up {folder} && container_engine_base"
    start += " && printf '%s\\n' $PATH $DOCKER_HOST $DCOMPOSE"
    try:
        started = _bash(folder, start, folder / "start.log")
        if started is None:
            pytest.skip(f"no container engine could be started: {(folder / 'start.log').read_text()[-1000:]}")
        path, host, compose = started.splitlines()[-3:]
        yield Engine({**os.environ, "PATH": path, "DOCKER_HOST": host, "DOCKER_BUILDKIT": "1"}, [compose])
    finally:
        _bash(folder, "container_engine_down", folder / "stop.log")


def _bash(folder: Path, command: str, log: Path) -> str | None:
    """What it prints; None where it fails. The engine outlives it and holds its standard error."""
    script = f"source {_SCRIPT} && CE={folder} && {command}"
    with log.open("w") as errors:
        done = subprocess.run(
            ["bash", "-c", script],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # or Ctrl-C would end the engine before what runs in it
            check=False,
        )
    return done.stdout if done.returncode == 0 else None


def _succeeds(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
