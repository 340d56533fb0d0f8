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
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path

from care_sweep.errors import ClusterExposed, DatabaseUnavailable, InvalidDocument, LeaseLost, StorageError
from care_sweep.layout import discard_all, discard_training_states, sweep_prefix
from care_sweep.log_lines import begin_logging
from care_sweep.run.cluster import await_cluster, connect, describe
from care_sweep.run.driver import LEASE_LOST
from care_sweep.run.patience import Complaints, outlast
from care_sweep.run.starting import Order, Starter
from care_sweep.run.tidying import tidy_up
from care_sweep.settings import Settings
from care_sweep.spec import SweepState
from care_sweep.storage import open_storage
from care_sweep.store import HoldRecord, Lease, Store, open_database

__all__ = ["Runner", "main"]

LEASE_SECONDS = 15.0
"""A lease has run out once its counter stood still this long on the observer's own monotonic clock."""

_BLIND_SECONDS = 5.0
"""Who saw nothing for so long, since the database was away or it slept itself, observes anew."""

_LATE_SECONDS = LEASE_SECONDS / 2
"""Who renews every 2 s and has not for so long may be gone."""

_CANCELLED_SECONDS = 5.0
"""A holder that does not end a cancelled sweep in this time is not waited for any longer."""

_LATE_WRITE_SECONDS = 30.0
"""By then Ray has ended the workers of a driver that has gone."""

_HANG_SECONDS = 60.0  # of a driver of one's own, whose process is there and may be slow to start
_POLL_SECONDS = 0.5
_REPORT_SECONDS = 5.0
_KILL_SECONDS = 3.0
_PLACE_SECONDS = 300.0
"""A sweep is driven for so long at least before it gives its place to one that waits: each change costs the
start of a driver and of its workers."""

_FREE_PLACE_SECONDS = 5.0
"""In this time another runner that has a place takes a waiting sweep."""

_MAX_DEATHS = 4  # of a sweep's drivers in a row, with no measurement between them
_LOG = logging.getLogger("care_sweep.runner")


@dataclass
class _Driver:
    sweep: HoldRecord  # as last seen
    lease: Lease
    process: "subprocess.Popen[bytes]"
    log: Path
    log_key: str
    is_asked: bool = False  # to give way


@dataclass
class _Observation:
    """A counter that this runner has seen stand, from when on, and when last."""

    counter: int
    since: float
    seen_at: float
    has_moved: bool


class _Doubt(Enum):
    """Has a sweep that another held lost its holder?"""

    NONE = auto()
    PERHAPS = auto()
    GONE = auto()


@dataclass
class _Deaths:
    count: int
    last_measurement: int


@dataclass
class Runner:
    """Claims waiting and abandoned sweeps, and ends those that are cancelled. Used from one thread.

    It drives so many at once as the settings say; their drivers divide the cluster, for Ray does not.
    `driver` is the command of a process that drives one, and waits until it is told which.
    """

    settings: Settings
    store: Store
    monotonic: Callable[[], float] = time.monotonic
    name: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")
    driver: Sequence[str] = (sys.executable, "-m", "care_sweep.run.driver")

    def __post_init__(self) -> None:
        self._starter = Starter(self.driver, self.monotonic)
        self._storage = open_storage(self.settings.storage_uri)
        self._drivers: dict[str, _Driver] = {}
        self._observed: dict[str, _Observation] = {}
        self._deaths: dict[str, _Deaths] = {}
        self._left: deque[tuple[float, str]] = deque()
        self._crowded_since: float | None = None
        self._placed_since: dict[str, float] = {}  # sweeps, by driver after driver

    def step(self) -> None:
        """Look once at every driver and every sweep that may need one.

        Sweeps that have lost their holder come before those that wait. One that may have is given time to
        show itself, and its place is kept. Where sweeps wait and no place is free, those that had theirs
        longest are asked to give way.
        """
        for driver in list(self._drivers.values()):
            self._look_after(driver)
        self._discard_late_writes()
        num_doubtful = num_orphaned = 0
        for sweep in self.store.holds():
            if sweep.id in self._drivers:
                continue
            doubt = self._doubt(sweep)
            if doubt is _Doubt.GONE and (self._has_room() or _needs_no_driver(sweep)):
                self._claim(sweep)
            elif doubt is not _Doubt.NONE:
                num_doubtful += 1
                num_orphaned += doubt is _Doubt.GONE
        num_places = self.settings.max_active_sweeps
        num_free = max(0, num_places - len(self._drivers) - num_doubtful)
        waiting = self.store.queued(limit=num_places)
        for sweep in waiting[:num_free]:
            self._claim(sweep)
        self._make_room(num_orphaned + len(waiting[num_free:]))
        if self._has_room():
            self._starter.prepare()

    def close(self) -> None:
        """End the drivers and let go of their sweeps, which go on when a runner claims them again."""
        self._starter.close()
        for driver in self._drivers.values():
            self._kill(driver)
            with contextlib.suppress(LeaseLost, DatabaseUnavailable):  # then its lease runs out
                driver.lease.release()
            self._keep_log(driver)
        self._drivers.clear()

    def _make_room(self, num_waiting: int) -> None:
        """Ask as many drivers to give way: who had a place longest for its priority, and at least its time.

        Each step asks them again, for one that only starts does not hear it.
        """
        now = self.monotonic()
        if not num_waiting:
            self._crowded_since = None
            return
        if self._crowded_since is None:
            self._crowded_since = now
        if now - self._crowded_since < _FREE_PLACE_SECONDS:
            return
        had = {sweep_id: now - since for sweep_id, since in self._placed_since.items()}
        running = [driver for driver in self._drivers.values() if driver.sweep.state is SweepState.RUNNING]
        asked = [driver for driver in running if driver.is_asked]
        due = [driver for driver in running if not driver.is_asked and had[driver.sweep.id] >= _PLACE_SECONDS]
        due.sort(key=lambda driver: had[driver.sweep.id] / driver.sweep.priority, reverse=True)
        for driver in [*asked, *due[: max(0, num_waiting - len(asked))]]:
            driver.is_asked = True
            driver.process.send_signal(signal.SIGUSR2)

    def _has_room(self) -> bool:
        return len(self._drivers) < self.settings.max_active_sweeps

    def _doubt(self, sweep: HoldRecord) -> "_Doubt":
        """Whether a sweep that others held has lost its holder."""
        if sweep.lease_owner is None:
            return _Doubt.GONE
        patience = _CANCELLED_SECONDS if sweep.is_cancelled else LEASE_SECONDS
        if self._has_run_out(sweep, patience):
            return _Doubt.GONE
        seen = self._observed[sweep.id]
        is_late = self.monotonic() - seen.since > _LATE_SECONDS
        return _Doubt.PERHAPS if is_late or not seen.has_moved else _Doubt.NONE

    def _has_run_out(self, sweep: HoldRecord, seconds: float) -> bool:
        """Whether this runner saw the sweep's counter stand still for so long, though it could have moved."""
        seen = self._observed.get(sweep.id)
        stood = seen is not None and seen.counter == sweep.lease_counter
        if seen is not None and stood and self.monotonic() - seen.since > seconds / 3:
            self.store.ping()  # where nobody can write, nobody can renew
        now = self.monotonic()
        if seen is None or not stood or now - seen.seen_at > _BLIND_SECONDS:
            has_moved = seen is not None and not stood
            self._observed[sweep.id] = _Observation(sweep.lease_counter, now, now, has_moved)
            return False
        seen.seen_at = now
        return now - seen.since >= seconds

    def _claim(self, sweep: HoldRecord) -> None:
        lease = self.store.claim(sweep, self.name)
        if lease is not None:
            self._begin(sweep, lease)

    def _begin(self, sweep: HoldRecord, lease: Lease) -> None:
        self._observed.pop(sweep.id, None)
        if sweep.state is SweepState.PAUSED:
            lease.release(reason="paused")
            return
        if sweep.is_cancelled:
            lease.finish_sweep(SweepState.CANCELLED, reason="cancelled")
            discard_training_states(self._storage, sweep_prefix(sweep.id))
            self._left.append((self.monotonic(), sweep.id))
            return
        log, log_key = self._log_of(lease)
        log.parent.mkdir(parents=True, exist_ok=True)
        process = self._starter.start(Order(sweep.id, lease.token, str(log), os.getpid()))
        self._drivers[sweep.id] = _Driver(sweep, lease, process, log, log_key)
        if sweep.state is SweepState.QUEUED or sweep.id not in self._placed_since:
            self._placed_since[sweep.id] = self.monotonic()
        _LOG.info("sweep %s is driven by process %d", sweep.id, process.pid)

    def _look_after(self, driver: _Driver) -> None:
        status = driver.process.poll()
        sweep = self.store.hold(driver.lease.sweep_id)
        if sweep is None:  # cancelled and deleted before its driver had noticed
            self._kill(driver)
            self._forget(driver)
            return
        driver.sweep = sweep
        if status is None:
            if sweep.is_cancelled:
                self._cancel(driver)
                self._forget(driver)
            elif self._has_run_out(sweep, _HANG_SECONDS):
                _LOG.warning("the driver of sweep %s hangs: it has not renewed its lease", sweep.id)
                self._kill(driver)  # the next look replaces it
            return
        self._forget(driver, keeps_place=sweep.state is SweepState.RUNNING and status != LEASE_LOST)
        if sweep.state.is_terminal or status in (0, LEASE_LOST):
            self._deaths.pop(sweep.id, None)
        elif sweep.is_cancelled:
            self._cancel(driver)
        elif sweep.state is SweepState.PAUSED:
            with contextlib.suppress(LeaseLost):
                driver.lease.release(reason="paused")
        else:
            self._replace(driver, status)

    def _forget(self, driver: _Driver, *, keeps_place: bool = False) -> None:
        """It has ended; its workers may not have, and what they still write is looked for later."""
        if not keeps_place:
            self._placed_since.pop(driver.lease.sweep_id, None)
        self._drivers.pop(driver.lease.sweep_id, None)
        self._observed.pop(driver.lease.sweep_id, None)
        self._left.append((self.monotonic(), driver.lease.sweep_id))
        self._keep_log(driver)

    def _discard_late_writes(self) -> None:
        """Of what workers wrote after their driver's end, delete what nobody wants any more."""
        while self._left and self.monotonic() - self._left[0][0] > _LATE_WRITE_SECONDS:
            _, sweep_id = self._left[0]
            sweep = self.store.hold(sweep_id)
            self._left.popleft()  # not before: the database may be away
            if sweep is None:
                discard_all(self._storage, sweep_id)
            elif sweep.state.is_terminal:
                discard_training_states(self._storage, sweep_prefix(sweep_id))

    def _cancel(self, driver: _Driver) -> None:
        """Fence the driver off and end it: what it had not stored by now never was."""
        with contextlib.suppress(LeaseLost):
            driver.lease.finish_sweep(SweepState.CANCELLED, reason="cancelled")
        self._kill(driver)
        discard_training_states(self._storage, sweep_prefix(driver.lease.sweep_id))
        _LOG.info("sweep %s was cancelled", driver.lease.sweep_id)

    def _replace(self, driver: _Driver, status: int) -> None:
        """Let the sweep be claimed anew, or end it where drivers die and nothing is measured in between."""
        sweep_id = driver.lease.sweep_id
        measured = self.store.last_measurement(sweep_id)
        deaths = self._deaths.setdefault(sweep_id, _Deaths(0, measured))
        deaths.count = deaths.count + 1 if deaths.last_measurement == measured else 1
        deaths.last_measurement = measured
        _LOG.warning("the driver of sweep %s ended with status %d; see %s", sweep_id, status, driver.log)
        with contextlib.suppress(LeaseLost):
            if deaths.count < _MAX_DEATHS:
                driver.lease.release()
            else:
                message = f"its driver ended {deaths.count} times in a row; {driver.log} ends with: "
                message += _last_line(driver.log)
                driver.lease.finish_sweep(SweepState.FAILED, reason="driver failed", message=message)

    def _log_of(self, lease: Lease) -> tuple[Path, str]:
        """The file that a driver logs to, and its key: its place in a folder, where all drivers append.

        An object store takes each driver's log when it has ended; until then it is a file of the home.
        """
        key = f"{sweep_prefix(lease.sweep_id)}/driver.log"
        place = self._storage.local_path(key)
        if place is not None:
            return place, key
        key = f"{sweep_prefix(lease.sweep_id)}/driver-{lease.token:05d}.log"
        return self.settings.home / "logs" / key.replace("/", "-"), key

    def _keep_log(self, driver: _Driver) -> None:
        if self._storage.local_path(driver.log_key) is not None:
            return
        try:
            self._storage.put(driver.log_key, driver.log.read_bytes(), overwrite=True)
        except (StorageError, OSError) as error:
            _LOG.warning("the driver's log stays in %s: %s", driver.log, error)

    def _kill(self, driver: _Driver) -> None:
        driver.process.terminate()
        try:
            driver.process.wait(_KILL_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(driver.process.pid, signal.SIGKILL)
            driver.process.wait()


def _needs_no_driver(sweep: HoldRecord) -> bool:
    """It is only to be let go of, or ended."""
    return sweep.is_cancelled or sweep.state is SweepState.PAUSED


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").rstrip().splitlines()
    return lines[-1][:1000] if lines else "nothing"


def main() -> int:
    """Run until SIGTERM or SIGINT.

    The exit status: 2 where a setting cannot be used, or no Ray cluster is given, or an exposed one.
    """
    begin_logging("%(asctime)s %(levelname)s %(message)s")
    try:
        settings = Settings.from_environment()
    except InvalidDocument as error:
        _LOG.error("%s", error)
        return 2
    if settings.ray_address is None:
        _LOG.error("RAY_ADDRESS is not set: `care-sweep serve` starts a local Ray and sets it")
        return 2
    address, stop = settings.ray_address, threading.Event()
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # as a driver does that has not come to hear it
    store = Store(outlast(lambda: open_database(settings.database_url)))
    await_cluster(address)
    runner = Runner(settings, store)
    sweeping = (runner.step, _POLL_SECONDS, stop, Complaints("the sweeps could not be looked after"))
    sweeper = threading.Thread(target=_repeat, args=sweeping, name="sweeps")

    exposed = threading.Event()

    def report() -> None:
        """Nothing else of a runner needs Ray: its drivers load their libraries while it joins the cluster."""
        try:
            connect(address)
        except ClusterExposed as error:  # the drivers have refused it too
            _LOG.error("%s", error)
            exposed.set()
            stop.set()
            return
        _end_with_signals(stop)  # Ray has taken them for itself
        store.report_cluster(runner.name, describe())

    _end_with_signals(stop)
    threading.Thread(target=_tidy_up, args=(settings, store), name="tidying", daemon=True).start()
    sweeper.start()
    _LOG.info("runner %s is ready", runner.name)
    try:
        _repeat(report, _REPORT_SECONDS, stop, Complaints("the cluster could not be reported"))
    finally:
        stop.set()
        sweeper.join()
        runner.close()
    return 2 if exposed.is_set() else 0


def _end_with_signals(stop: threading.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())


def _repeat(step: Callable[[], None], seconds: float, stop: threading.Event, complaints: Complaints) -> None:
    while not stop.is_set():
        try:
            step()
        except Exception as error:  # noqa: BLE001  (database and cluster may be away for a while)
            complaints.note(error)
        else:
            complaints.note(None)
        stop.wait(seconds)


def _tidy_up(settings: Settings, store: Store) -> None:
    try:
        tidy_up(open_storage(settings.storage_uri), store)
    except Exception:  # noqa: BLE001  (the next start tries again)
        _LOG.exception("the storage could not be tidied up")


if __name__ == "__main__":
    sys.exit(main())
