"""All or nothing: transactions that break off between any two statements, and processes that are killed."""

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from situations import LEASE_WRITES, Clock, claimed, in_the_middle, picture, spec, struck_after

from care_sweep.store import Store, open_database

HERE = Path(__file__).parent


class Struck(Exception):  # noqa: N818
    """Stands for whatever breaks a transaction off."""


def _strike() -> None:
    raise Struck


def _cancel_running(store: Store) -> Callable[[], object]:
    lease = claimed(store)
    return lambda: store.control.cancel(lease.sweep_id)


def _cancel_queued(store: Store) -> Callable[[], object]:
    record, _ = store.submit(spec())
    return lambda: store.control.cancel(record.id)


def _claim(store: Store) -> Callable[[], object]:
    record, _ = store.submit(spec())
    return lambda: store.claim(record, "runner")


def _submit(store: Store) -> Callable[[], object]:
    return lambda: store.submit(spec(), idempotency_key="k", body_sha256="a")


def _report(store: Store) -> Callable[[], object]:
    return lambda: store.report_cluster("runner", {})


STORE_WRITES = {
    "submit": _submit,
    "cancel queued": _cancel_queued,
    "cancel running": _cancel_running,
    "claim": _claim,
    "report_cluster": _report,
}


@pytest.mark.parametrize("name", [*STORE_WRITES, *LEASE_WRITES])
def test_a_write_that_breaks_off_anywhere_leaves_nothing(store: Store, name: str) -> None:
    if name in STORE_WRITES:
        write = STORE_WRITES[name](store)
    else:
        lease = in_the_middle(store)
        write = lambda: LEASE_WRITES[name](lease)  # noqa: E731
    before = picture(store)
    for num_statements in count():
        try:
            with struck_after(store.engine, num_statements, _strike):
                write()
        except Struck:
            assert picture(store) == before
        else:
            break
    begin = store.engine.dialect.name == "sqlite"  # PostgreSQL's driver begins without a statement
    assert num_statements >= 2 + begin  # one statement, commit
    assert picture(store) != before


def test_a_process_that_dies_between_any_two_statements_leaves_nothing(tmp_path: Path) -> None:
    """A child process a statement; `dying.py` compares the database before and after each death."""
    command = [sys.executable, HERE / "dying.py", tmp_path / "store.db"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for report in json.loads(done.stdout):
        assert report["num_deaths"] >= 6, report
        assert report["num_damaged"] == 0, report
        assert report["is_changed_at_last"], report


def test_no_acknowledged_sweep_is_lost_or_doubled_by_kills(database_url: str, clock: Clock) -> None:
    """kill -9 of a process that submits; the next one begins with the request that had no answer."""
    acknowledged: dict[int, str] = {}
    for num_answers in (5, 31, 18):
        next_number = len(acknowledged)
        command = [sys.executable, HERE / "submitting.py", database_url, str(next_number)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _, line in zip(range(num_answers), process.stdout, strict=False):
                number, sweep_id = line.split()
                acknowledged[int(number)] = sweep_id
            process.kill()
            for line in process.stdout:  # answered before the kill, read after it
                if line.endswith("\n"):
                    number, sweep_id = line.split()
                    acknowledged[int(number)] = sweep_id
            assert process.wait() == -signal.SIGKILL

    engine = open_database(database_url)
    store = Store(engine, clock)
    stored = {record.id: record.name for record in store.sweeps(page_size=10_000).items}
    engine.dispose()
    assert len(acknowledged) >= 5 + 31 + 18
    assert all(stored.get(sweep_id) == f"number {number}" for number, sweep_id in acknowledged.items())
    assert max(Counter(stored.values()).values()) == 1
    assert len(stored) - len(acknowledged) in (0, 1)  # the last request may have committed unanswered
