"""One sweep, from its claim to its end: the process `python -m care_sweep.run.driver`.

One process a sweep, since Ray Tune keeps global state; its runner may start it before there is one, and tells
it on standard input. It ends 0 when the sweep has ended, paused, is handed over to a fresh driver or gave way
to another sweep, as SIGUSR2 asks of it, or its runner ended before it told; 3 when its lease was lost, and
otherwise 1: the runner then starts another, which goes on from the store.
"""

import argparse
import functools
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from care_sweep.errors import LeaseLost, RevisionMismatch
from care_sweep.log_lines import begin_logging
from care_sweep.run.patience import Complaints, outlast
from care_sweep.run.starting import await_order
from care_sweep.settings import Settings
from care_sweep.spec import SweepState, TrialState
from care_sweep.storage import open_storage
from care_sweep.store import Lease, Store, open_database

if TYPE_CHECKING:
    from care_sweep.run.conductor import Conductor

    _Work = Callable[[Mapping[str, Any]], None]

__all__ = ["LEASE_LOST", "main"]

LEASE_LOST = 3
_RENEW_SECONDS = 2.0
_LOG = logging.getLogger("care_sweep.driver")


def main(work: "_Work | None" = None) -> int:
    """Drive the sweep that the runner tells of; `work`, if not training, is what its workers do."""
    begin_logging("%(asctime)s %(levelname)s %(message)s")
    loading = threading.Thread(target=_load, name="loading", daemon=True)
    loading.start()
    order = await_order()
    if order is None:
        os._exit(0)  # at once, and not beside a thread that may be loading
    try:
        settings = Settings.from_environment()
        store = Store(outlast(lambda: open_database(settings.database_url)))
        lease = Lease(store.engine, order.sweep_id, order.fencing_token, store.clock, persist=outlast)
        drive(store, lease, settings, order.runner, loading, work)
    except LeaseLost as error:
        _LOG.warning("%s", error)
        return LEASE_LOST
    except Exception as error:  # noqa: BLE001  (whatever it was, the runner starts another driver)
        _LOG.exception("the driver failed")
        print(last_words(error), file=sys.stderr, flush=True)  # the runner reads the log's last line
        return 1
    return 0


def last_words(error: Exception) -> str:
    """One line on what failed. Tune puts the traceback of the real error into its own's message."""
    lines = str(error).strip().splitlines() or [""]
    return lines[-1] if lines[0].startswith("Traceback") else f"{type(error).__name__}: {lines[0]}"


def _load() -> None:
    """Import what takes long; where that fails, it fails again where it is needed, and is told there."""
    from care_sweep.run import cluster, conductor, tuning  # noqa: F401, PLC0415


def drive(
    store: Store,
    lease: Lease,
    settings: Settings,
    runner: int,
    loading: threading.Thread,
    work: "_Work | None" = None,
) -> None:
    """Run what is left of the sweep and store how it ended, unless asked to give way before.

    Called from the main thread, where Python hears signals, and while the process `runner` lives.
    """
    conductor: Conductor | None = None
    gives_way = False

    def give_way(*_: object) -> None:
        nonlocal gives_way
        gives_way = True
        if conductor is not None:
            conductor.hand_over()

    signal.signal(signal.SIGUSR2, give_way)  # SIGUSR1 is Ray Tune's own

    def seconds() -> float:
        return 0.0 if conductor is None else conductor.seconds

    with _kept(lease, seconds, runner):  # also while Ray is imported, which takes long on a busy machine
        loading.join()
        from care_sweep.run import conductor as conducting  # noqa: PLC0415
        from care_sweep.run.cluster import await_cluster, connect  # noqa: PLC0415
        from care_sweep.run.tuning import run_trials  # noqa: PLC0415

        assert settings.ray_address, "the runner sets RAY_ADDRESS"
        await_cluster(settings.ray_address)
        connect(settings.ray_address)
        storage, num_kept = open_storage(settings.storage_uri), settings.num_checkpoints_kept
        conductor = outlast(
            lambda: conducting.Conductor(store, lease, storage, num_checkpoints_kept=num_kept)
        )
        if gives_way:
            conductor.hand_over()
        run_trials(conductor, settings, *([work] if work else []))
    if conductor.is_paused:
        lease.release(reason="paused")
        return
    if conductor.is_handing_over and not conductor.is_over:
        lease.give_way() if gives_way else lease.release(reason="handed over")
        return
    try:
        _finish(store, lease, conductor)
    except RevisionMismatch as error:
        _LOG.info("%s: the next driver will", error)
        lease.release()


def _finish(store: Store, lease: Lease, conductor: "Conductor") -> None:
    """Store how the sweep ended, unless a user has wished something in the last moment."""
    finish = functools.partial(lease.finish_sweep, seen=conductor.revision)
    counts = outlast(lambda: store.sweep(lease.sweep_id)).trial_counts
    if conductor.is_draining:
        finish(SweepState.SUCCEEDED, reason="stopped")
    elif (spent := conductor.cut_short) and set(counts) != {TrialState.FAILED}:
        finish(SweepState.SUCCEEDED, reason=spent)
    elif counts.get(TrialState.COMPLETE):
        finish(SweepState.SUCCEEDED)
    else:
        kinds = ", ".join(f"{count} {state.lower()}" for state, count in counts.items())
        message = f"no trial completed ({kinds}): `care-sweep logs` shows why"
        finish(SweepState.FAILED, reason="no complete trial", message=message)


@contextmanager
def _kept(lease: Lease, seconds: Callable[[], float], runner: int) -> Iterator[None]:
    """Renew the lease for the length of a `with`, and store the seconds in which trials ran."""
    done = threading.Event()
    keeper = threading.Thread(target=_keep, args=(lease, seconds, runner, done), name="lease", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()


def _keep(lease: Lease, seconds: Callable[[], float], runner: int, done: threading.Event) -> None:
    """End the process as soon as the lease is lost or the runner gone: it may write nothing more."""
    counted = 0.0
    complaints = Complaints("the lease could not be renewed")
    while not done.wait(_RENEW_SECONDS):
        if os.getppid() != runner:
            _LOG.warning("the runner is gone")
            os._exit(1)
        now = seconds()
        try:
            lease.renew(now - counted)
            counted = now
            complaints.note(None)
        except LeaseLost as error:
            _LOG.warning("%s", error)
            os._exit(LEASE_LOST)
        except Exception as error:  # noqa: BLE001  (the database may be away for a while)
            complaints.note(error)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()  # there are none
    sys.exit(main())
