"""Which sweeps run now? `python -m care_sweep.run.runner` claims them and watches their drivers."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from care_sweep.errors import LeaseLost
from care_sweep.run.cluster import connect, describe
from care_sweep.run.driver import LEASE_LOST
from care_sweep.settings import Settings
from care_sweep.spec import SweepState
from care_sweep.store import Lease, Store, SweepRecord, open_database

__all__ = ["Runner", "main"]

LEASE_SECONDS = 15.0
"""A lease has run out once its counter stood still this long on the observer's own monotonic clock."""

_POLL_SECONDS = 0.5
_REPORT_SECONDS = 5.0
_KILL_SECONDS = 3.0
_MAX_DRIVERS = 4  # of one sweep in a row, none of which got anywhere
_LOG = logging.getLogger("care_sweep.runner")


@dataclass
class _Driver:
    lease: Lease
    process: "subprocess.Popen[bytes]"
    log: Path


@dataclass
class _Observation:
    counter: int
    since: float


@dataclass
class Runner:
    """Claims waiting and abandoned sweeps, and ends those that are cancelled. Used from one thread.

    It runs `max_active_sweeps` at once: Ray knows no fairness between drivers, the first takes all there is.
    """

    settings: Settings
    store: Store
    max_active_sweeps: int = 1
    monotonic: Callable[[], float] = time.monotonic
    name: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")

    def __post_init__(self) -> None:
        self._drivers: dict[str, _Driver] = {}
        self._observed: dict[str, _Observation] = {}
        self._deaths: dict[str, int] = {}

    def step(self) -> None:
        """Look once at every driver and every sweep that may need one."""
        for driver in list(self._drivers.values()):
            self._look_after(driver)
        for sweep in self._claimable():
            if len(self._drivers) >= self.max_active_sweeps:
                break
            lease = self.store.claim(sweep, self.name)
            if lease is not None:
                self._begin(sweep, lease)

    def close(self) -> None:
        """End the drivers and let go of their sweeps, which go on when a runner claims them again."""
        for driver in self._drivers.values():
            self._kill(driver)
            with contextlib.suppress(LeaseLost):
                driver.lease.release()
        self._drivers.clear()

    def _claimable(self) -> list[SweepRecord]:
        """Waiting sweeps, oldest first, after those whose driver or runner has gone."""
        live = [SweepState.RUNNING, SweepState.STOPPING]
        leased = self.store.sweeps(states=live, oldest_first=True, page_size=1000).items
        abandoned = [s for s in leased if s.id not in self._drivers and self._is_abandoned(s)]
        queued = self.store.sweeps(states=[SweepState.QUEUED], oldest_first=True, page_size=50).items
        return [*abandoned, *queued]

    def _is_abandoned(self, sweep: SweepRecord) -> bool:
        if sweep.lease_owner is None:
            return True
        now = self.monotonic()
        seen = self._observed.get(sweep.id)
        if seen is None or seen.counter != sweep.lease_counter:
            self._observed[sweep.id] = _Observation(sweep.lease_counter, now)
            return False
        return now - seen.since >= LEASE_SECONDS

    def _begin(self, sweep: SweepRecord, lease: Lease) -> None:
        self._observed.pop(sweep.id, None)
        if sweep.state is SweepState.STOPPING:
            lease.finish_sweep(SweepState.CANCELLED, reason="cancelled")
            return
        log = self.settings.storage_uri / "sweeps" / sweep.id / "driver.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "care_sweep.run.driver"]
        command += ["--sweep", sweep.id, "--fencing-token", str(lease.token)]
        with log.open("ab") as output:
            process = subprocess.Popen(  # noqa: S603  (our own module; the id is ours)
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self._drivers[sweep.id] = _Driver(lease, process, log)
        _LOG.info("sweep %s is driven by process %d", sweep.id, process.pid)

    def _look_after(self, driver: _Driver) -> None:
        sweep = self.store.sweep(driver.lease.sweep_id)
        status = driver.process.poll()
        if status is None:
            if sweep.state is SweepState.STOPPING:
                self._cancel(driver)
            return
        del self._drivers[sweep.id]
        if sweep.state.is_terminal or status == LEASE_LOST:
            self._deaths.pop(sweep.id, None)
        elif sweep.state is SweepState.STOPPING:
            self._cancel(driver)
        else:
            self._replace(driver, status)

    def _cancel(self, driver: _Driver) -> None:
        """Fence the driver off and end it: what it had not stored by now never was."""
        with contextlib.suppress(LeaseLost):
            driver.lease.finish_sweep(SweepState.CANCELLED, reason="cancelled")
        self._kill(driver)
        self._drivers.pop(driver.lease.sweep_id, None)
        _LOG.info("sweep %s was cancelled", driver.lease.sweep_id)

    def _replace(self, driver: _Driver, status: int) -> None:
        sweep_id = driver.lease.sweep_id
        self._deaths[sweep_id] = self._deaths.get(sweep_id, 0) + 1
        _LOG.warning("the driver of sweep %s ended with status %d; see %s", sweep_id, status, driver.log)
        with contextlib.suppress(LeaseLost):
            if self._deaths[sweep_id] < _MAX_DRIVERS:
                driver.lease.release()
            else:
                tail = driver.log.read_text(errors="replace")[-2000:]
                driver.lease.finish_sweep(SweepState.FAILED, reason="driver failed", message=tail)

    def _kill(self, driver: _Driver) -> None:
        driver.process.terminate()
        try:
            driver.process.wait(_KILL_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(driver.process.pid, signal.SIGKILL)
            driver.process.wait()


def main() -> int:
    """Run until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings = Settings.from_environment()
    if settings.ray_address is None:
        _LOG.error("RAY_ADDRESS is not set: `care-sweep serve` starts a local Ray and sets it")
        return 2
    stop = threading.Event()
    store = Store(open_database(settings.database_url))
    connect(settings.ray_address)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    runner = Runner(settings, store)
    reports = threading.Thread(target=_report_cluster, args=(runner, stop), name="cluster", daemon=True)
    reports.start()
    _LOG.info("runner %s is ready", runner.name)
    try:
        while not stop.wait(_POLL_SECONDS):
            try:
                runner.step()
            except Exception:  # noqa: BLE001  (the database may be away for a while)
                _LOG.exception("a step failed; trying again")
    finally:
        runner.close()
    return 0


def _report_cluster(runner: Runner, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            runner.store.report_cluster(runner.name, describe())
        except Exception:  # noqa: BLE001  (the cluster may be away for a while)
            _LOG.exception("the cluster could not be described; trying again")
        stop.wait(_REPORT_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
