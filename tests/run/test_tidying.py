"""What a runner deletes when it starts, and above all what it does not."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from care_sweep.documents import parse
from care_sweep.run import tidying
from care_sweep.spec import CheckpointReference, Measurement, SweepSpec, SweepState, TrialState
from care_sweep.storage import open_storage
from care_sweep.store import Lease, Store, open_database


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    engine = open_database(f"sqlite:///{tmp_path / 'test.db'}")
    yield Store(engine)
    engine.dispose()


def _sweep(store: Store) -> Lease:
    """A sweep whose one trial is COMPLETE after its second attempt."""
    document: dict[str, Any] = {
        "name": "test",
        "space": {"parameters": {"temperature": {"type": "float", "low": 0.05, "high": 1}}},
        "num_trials": 1,
    }
    lease = store.claim(store.submit(parse(SweepSpec, document))[0], "test")
    assert lease is not None
    lease.start_attempt(0, 1, {"temperature": 0.5}, is_baseline=False)
    lease.start_attempt(0, 2, {"temperature": 0.5}, is_baseline=False)
    checkpoint = CheckpointReference(name="attempt-2/checkpoint.tar", sha256="0" * 64, size_bytes=1)
    last = Measurement(epoch=1, metrics={}, seconds=1, checkpoint=checkpoint)
    lease.record(0, 2, last, state=TrialState.COMPLETE, value=0.5)
    return lease


FILES = {
    "driver.log": True,
    "trials/00000/attempt-1/log.txt": True,
    "trials/00000/attempt-1/checkpoint.tar": False,
    "trials/00000/attempt-1/state-00001.pt": False,
    "trials/00000/attempt-2/log.txt": True,
    "trials/00000/attempt-2/checkpoint.tar": True,
    "trials/00000/attempt-2/state-00001.pt": False,
    "trials/00000/attempt-2/notes.tar": True,
}
"""Below an ended sweep, and whether each stays."""


@pytest.mark.parametrize("is_old", [True, False])
def test_only_what_no_row_names_goes_from_ended_sweeps(
    storage_uri: str,
    store: Store,
    is_old: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="care_sweep")
    monkeypatch.setattr(tidying, "_YOUNG_SECONDS", -60.0 if is_old else 3600.0)
    storage = open_storage(storage_uri)
    ended, running = _sweep(store), _sweep(store)
    ended.finish_sweep(SweepState.SUCCEEDED)
    roots = [ended.sweep_id, running.sweep_id, "0123456789ab", "not-ours", "0123456789abc"]
    for root in roots:
        for name in FILES:
            storage.put(f"sweeps/{root}/{name}", b"x")
    storage.put("elsewhere/0123456789ab/trials/00000/attempt-1/state-00001.pt", b"x")
    tidying.tidy_up(storage, store)
    for root in roots:
        found = {one.key.removeprefix(f"sweeps/{root}/") for one in storage.list(f"sweeps/{root}")}
        expected = {name for name, stays in FILES.items() if stays or root != ended.sweep_id or not is_old}
        assert found == expected, root
    assert len(list(storage.list("elsewhere"))) == 1
    told = [record.getMessage() for record in caplog.records]
    assert sum("0123456789ab is of no sweep that this database knows" in one for one in told) == 1
    assert sum("4 files that nobody needs" in one for one in told) == 0
    assert sum("3 files that nobody needs" in one for one in told) == is_old


def test_old_temporary_files_go(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(str(tmp_path / "storage"))
    storage.put("sweeps/0123456789ab/driver.log", b"x")
    part = tmp_path / "storage" / "sweeps" / "0123456789ab" / ".state-00001.pt.1-ab.part"
    part.touch()
    tidying.tidy_up(storage, store)
    assert part.exists()
    monkeypatch.setattr(tidying, "_YOUNG_SECONDS", -60.0)
    tidying.tidy_up(storage, store)
    assert not part.exists()
