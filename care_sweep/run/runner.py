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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from care_sweep.errors import ClusterExposed, DatabaseUnavailable, InvalidDocument, LeaseLost, StorageError
from care_sweep.log_lines import begin_logging
from care_sweep.run.cluster import await_cluster, connect, describe
from care_sweep.run.driver import LEASE_LOST
from care_sweep.run.holders import Doubt, Holders
from care_sweep.run.leftovers import DriverLog, Leftovers
from care_sweep.run.patience import Complaints, outlast
from care_sweep.run.scaling import Autoscaler
from care_sweep.run.starting import Order, Starter
from care_sweep.run.tidying import tidy_up
from care_sweep.settings import Settings
from care_sweep.spec import SweepState
from care_sweep.storage import open_storage
from care_sweep.store import HoldRecord, Lease, Store, open_database

__all__ = ["Runner", "main"]

_HANG_SECONDS = 60.0  # of a driver of one's own, whose process is there and may be slow to start
_POLL_SECONDS = 0.5
_REPORT_SECONDS = 5.0
_KILL_SECONDS = 3.0
_PLACE_SECONDS = 300.0
"""A sweep is driven for so long at least before it gives its place to one that waits: each change costs the
start of a driver and of its workers."""

_FREE_PLACE_SECONDS = 5.0
"""In this time another runner that has a place takes a waiting sweep."""

_REST_SECONDS = (0.0, 5.0, 10.0)
"""Before a sweep's next driver after so many have died in a row with no measurement between them; one more
death ends the sweep. What fails at once may be mended in a moment, as a database that takes no connection.
Shorter than a lease, which the runner keeps meanwhile, so that another does not begin what it lets rest."""

_NO_START_SECONDS = 15.0  # before the next try, where this machine could not start a driver
_LOG = logging.getLogger("care_sweep.runner")


@dataclass
class _Driver:
    sweep: HoldRecord  # as last seen
    lease: Lease
    process: "subprocess.Popen[bytes]"
    log: DriverLog
    is_asked: bool = False  # to give way


@dataclass
class _Deaths:
    count: int
    last_measurement: int


@dataclass
class Runner:
    """Claims waiting and abandoned sweeps, and ends those that are cancelled. Used from one thread.

    It drives so many at once as the settings say; their drivers divide the cluster, for Ray does not.
    `driver` is the command of a process that drives one, and waits until it is told which. What drivers leave
    is put away by `leftovers`, which may be tended from another thread.
    """

    settings: Settings
    store: Store
    monotonic: Callable[[], float] = time.monotonic
    name: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")
    driver: Sequence[str] = (sys.executable, "-m", "care_sweep.run.driver")

    def __post_init__(self) -> None:
        storage = open_storage(self.settings.storage_uri)
        self.leftovers = Leftovers(storage, self.store, self.settings.home, self.monotonic)
        self._starter = Starter(self.driver, self.monotonic)
        self._holders = Holders(self.store.ping, self.monotonic)
        self._drivers: dict[str, _Driver] = {}
        self._deaths: dict[str, _Deaths] = {}
        self._not_before: dict[str, float] = {}  # sweeps that rest before their next driver
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
        num_doubtful = num_orphaned = 0
        holds = self.store.holds()
        self._forget_all_but(holds)
        for sweep in holds:
            if sweep.id in self._drivers:
                continue
            doubt, rests = self._doubt(sweep), self._rests(sweep)
            if doubt is Doubt.GONE and not rests and (self._has_room() or _needs_no_driver(sweep)):
                self._claim(sweep)
            elif doubt is not Doubt.NONE:
                num_doubtful += 1
                num_orphaned += doubt is Doubt.GONE and not rests
        num_places = self.settings.max_active_sweeps
        num_free = max(0, num_places - len(self._drivers) - num_doubtful)
        queued = self.store.queued(limit=num_places + len(self._drivers))
        waiting = [sweep for sweep in queued if sweep.id not in self._drivers][:num_places]
        for sweep in waiting[:num_free]:
            self._claim(sweep)
        self._make_room(num_orphaned + len(waiting[num_free:]))
        if self._has_room():
            self._starter.prepare()

    def close(self) -> None:
        """End the drivers and let go of their sweeps, which go on when a runner claims them again."""
        self._starter.close()
        drivers = list(self._drivers.values())
        _end([driver.process for driver in drivers])
        for driver in drivers:
            with contextlib.suppress(LeaseLost, DatabaseUnavailable):  # then its lease runs out
                driver.lease.release()
            self._forget(driver)

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

    def _doubt(self, sweep: HoldRecord) -> Doubt:
        """Whether a sweep without a driver here has lost its holder; who lets it rest is none."""
        is_ours = sweep.id in self._not_before and sweep.lease_owner == self.name
        return Doubt.GONE if is_ours else self._holders.doubt(sweep)

    def _rests(self, sweep: HoldRecord) -> bool:
        """It is to have its next driver from this runner later."""
        return self.monotonic() < self._not_before.get(sweep.id, 0.0) and not _needs_no_driver(sweep)

    def _claim(self, sweep: HoldRecord) -> None:
        lease = self.store.claim(sweep, self.name)
        if lease is not None:
            self._begin(sweep, lease)

    def _begin(self, sweep: HoldRecord, lease: Lease) -> None:
        self._holders.forget(sweep.id)
        self._not_before.pop(sweep.id, None)
        if sweep.state is SweepState.PAUSED:
            lease.release(reason="paused")
            return
        if sweep.is_cancelled:
            lease.finish_sweep(SweepState.CANCELLED, reason="cancelled")
            self.leftovers.sweep_cancelled(sweep.id)
            return
        log = self.leftovers.log_of(sweep.id, lease.token)
        try:
            log.path.parent.mkdir(parents=True, exist_ok=True)
            process = self._starter.start(Order(sweep.id, lease.token, str(log.path), os.getpid()))
        except OSError as error:
            self._let_go(lease, f"no driver could be started on {socket.gethostname()}: {error.strerror}")
            return
        self._drivers[sweep.id] = _Driver(sweep, lease, process, log)
        if sweep.state is SweepState.QUEUED or sweep.id not in self._placed_since:
            self._placed_since[sweep.id] = self.monotonic()
        _LOG.info("sweep %s is driven by process %d", sweep.id, process.pid)

    def _let_go(self, lease: Lease, message: str) -> None:
        """Another runner may have more luck; this one tries again later."""
        _LOG.error("sweep %s: %s", lease.sweep_id, message)
        self._not_before[lease.sweep_id] = self.monotonic() + _NO_START_SECONDS
        with contextlib.suppress(LeaseLost):
            lease.explain(message)
            lease.release()

    def _look_after(self, driver: _Driver) -> None:
        status = driver.process.poll()
        sweep = self.store.hold(driver.lease.sweep_id)
        if sweep is None or (status is None and sweep.fencing_token != driver.lease.token):
            _end([driver.process])  # deleted before its driver had noticed, or another runner's
            self._forget(driver)
            return
        driver.sweep = sweep
        if status is None:
            if sweep.is_cancelled:
                self._cancel(driver)
            elif self._holders.has_run_out(sweep, _HANG_SECONDS):
                _LOG.warning("the driver of sweep %s hangs: it has not renewed its lease", sweep.id)
                _end([driver.process])  # the next look replaces it
            return
        if sweep.state.is_terminal or status in (0, LEASE_LOST):
            self._deaths.pop(sweep.id, None)
        elif sweep.is_cancelled:
            self._cancel(driver)
            return
        elif sweep.state is SweepState.PAUSED:
            with contextlib.suppress(LeaseLost):
                driver.lease.release(reason="paused")
        else:
            self._replace(driver, status)
        self._forget(driver, keeps_place=sweep.state is SweepState.RUNNING and status != LEASE_LOST)

    def _forget(self, driver: _Driver, *, keeps_place: bool = False) -> None:
        """It has ended."""
        sweep_id = driver.lease.sweep_id
        if not keeps_place:
            self._placed_since.pop(sweep_id, None)
        self._drivers.pop(sweep_id, None)
        self._holders.forget(sweep_id)
        self.leftovers.driver_ended(sweep_id, driver.log)

    def _forget_all_but(self, holds: Sequence[HoldRecord]) -> None:
        """What was noted of sweeps that have ended or stand still, and of others' what is theirs to note."""
        sweep_ids = {sweep.id for sweep in holds}
        self._holders.keep_only(sweep_ids)
        ours = {sweep.id for sweep in holds if sweep.lease_owner in (None, self.name)} | self._drivers.keys()
        kept = ((self._deaths, sweep_ids), (self._not_before, ours), (self._placed_since, ours))
        for notes, known in kept:
            for sweep_id in notes.keys() - known:
                del notes[sweep_id]

    def _cancel(self, driver: _Driver) -> None:
        """Fence the driver off and end it: what it had not stored by now never was."""
        with contextlib.suppress(LeaseLost):
            driver.lease.finish_sweep(SweepState.CANCELLED, reason="cancelled")
        _end([driver.process])
        self.leftovers.sweep_cancelled(driver.lease.sweep_id)
        self._forget(driver)
        _LOG.info("sweep %s was cancelled", driver.lease.sweep_id)

    def _replace(self, driver: _Driver, status: int) -> None:
        """Let the sweep rest before its next driver, or end it where they die and nothing is measured."""
        sweep_id = driver.lease.sweep_id
        measured = self.store.last_measurement(sweep_id)
        deaths = self._deaths.setdefault(sweep_id, _Deaths(0, measured))
        deaths.count = deaths.count + 1 if deaths.last_measurement == measured else 1
        deaths.last_measurement = measured
        _LOG.warning("the driver of sweep %s ended with status %d; see %s", sweep_id, status, driver.log.path)
        with contextlib.suppress(LeaseLost):
            if deaths.count <= len(_REST_SECONDS):
                self._not_before[sweep_id] = self.monotonic() + _REST_SECONDS[deaths.count - 1]
            else:
                message = f"its driver ended {deaths.count} times in a row; {driver.log.key} ends with: "
                message += _last_line(driver.log.path)
                driver.lease.finish_sweep(SweepState.FAILED, reason="driver failed", message=message)


def _end(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Ask them to end, and kill with their groups those that have not after a while."""
    for process in processes:
        process.terminate()
    until = time.monotonic() + _KILL_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _needs_no_driver(sweep: HoldRecord) -> bool:
    """It is only to be let go of, or ended."""
    return sweep.is_cancelled or sweep.state is SweepState.PAUSED


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").replace("\0", "\ufffd").rstrip().splitlines()
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

    exposed, autoscaler = threading.Event(), Autoscaler()

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
        autoscaler.ask(store.demands())

    _end_with_signals(stop)
    threading.Thread(target=_tidy_up, args=(settings, store), name="tidying", daemon=True).start()
    sweeper.start()
    closed = threading.Event()
    tending = threading.Thread(target=_tend, args=(runner.leftovers, closed), name="leftovers")
    tending.start()
    _LOG.info("runner %s is ready", runner.name)
    try:
        _repeat(report, _REPORT_SECONDS, stop, Complaints("the cluster could not be reported"))
    finally:
        stop.set()
        sweeper.join()
        try:
            runner.close()
        finally:
            closed.set()
            tending.join()
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


def _tend(leftovers: Leftovers, closed: threading.Event) -> None:
    """Until the runner is closed, and once more for what that has left."""
    complaints = Complaints("what drivers left could not be put away")
    _repeat(leftovers.tend, _POLL_SECONDS, closed, complaints)
    try:
        leftovers.tend()
    except (DatabaseUnavailable, StorageError) as error:
        _LOG.warning("what drivers left stays where it is: %s", error)


def _tidy_up(settings: Settings, store: Store) -> None:
    try:
        tidy_up(open_storage(settings.storage_uri), store)
    except Exception:  # noqa: BLE001  (the next start tries again)
        _LOG.exception("the storage could not be tidied up")


if __name__ == "__main__":
    sys.exit(main())
