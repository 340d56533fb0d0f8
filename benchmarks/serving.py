"""A real `python -m service` to measure: how it is started, and what it takes of the machine."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Service", "allow_files", "service_on"]


@dataclass(frozen=True)
class Service:
    """A running service."""

    address: str
    pid: int

    @property
    def resident_bytes(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @property
    def cpu_seconds(self) -> float:
        times = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[11:13]  # user, system
        return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


@contextmanager
def service_on(home: Path, database_url: str) -> Iterator[Service]:
    """A service on that database, for the length of a `with`."""
    home.mkdir()
    environment = {**os.environ, "CARE_SWEEP_HOME": str(home), "CARE_SWEEP_DATABASE_URL": database_url}
    command = [sys.executable, "-m", "service", "--port", "0"]
    with (home / "service.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"the service did not start: {(home / 'service.log').read_text()}")
        yield Service(line.split()[-1], process.pid)
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def allow_files(number: int) -> None:
    """A connection is an open file, here and in the service, which inherits the limit."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit, min(number, most)), most))
