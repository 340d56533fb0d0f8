"""Does an instance keep its promises when its processes die, and would a broken one be told?"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.phases.kept import kept
from benchmarks.phases.promises import broken_promises, curves, redone_epochs, store_in, unequal_curves
from care_sweep.layout import attempt_prefix, trial_prefix
from care_sweep.spec import CheckpointReference, Measurement, SearchSpace, SweepSpec, SweepState, TrialState
from care_sweep.store import Lease, Store

_CHAOS = Path(__file__).parents[1] / "benchmarks" / "chaos.py"
_SHA256_OF_NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_is_lost_when_processes_are_killed(tmp_path: Path) -> None:
    command = [sys.executable, str(_CHAOS), "--quick", "--directory", str(tmp_path / "chaos")]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        output, errors = running.communicate(timeout=800)
    finally:
        running.send_signal(signal.SIGTERM)  # it ends its instance
        running.wait()
    report = json.loads(output)
    too_late = [problem for problem in report["trials"]["broken"] if "progress after" in problem]
    assert report["trials"]["broken"] == too_late, errors[-3000:]  # how soon is for a machine of one's own
    assert report["submissions"]["broken"] == []
    assert report["submissions"]["acknowledged"] >= 25
    assert sum(report["trials"]["kills"].values()) == 4
    assert report["trials"]["trials_compared"] == report["trials"]["trials"]


class _Told:
    """A sweep of two trials of two epochs that ended well, in a home, and what a reader was told of it."""

    def __init__(self, home: Path, store: Store) -> None:
        self.store, self.storage = store, home / "storage"
        temperature = {"type": "float", "low": 0.05, "high": 1.0}
        space = SearchSpace.model_validate(
            {"parameters": {"temperature": temperature}, "fixed": {"epochs": 2}}
        )
        self.id = store.submit(SweepSpec(name="told", space=space, num_trials=2))[0].id
        lease = store.claim(store.sweep(self.id), "a test")
        assert lease is not None
        self.lease: Lease = lease

    def trial(self, number: int, *, epochs: int = 2, ends: bool = True) -> None:
        self.lease.start_attempt(number, 1, {"temperature": 0.1 * (number + 1)}, is_baseline=False)
        folder = self.storage / attempt_prefix(trial_prefix(self.id, number), 1)
        folder.mkdir(parents=True)
        (folder / "checkpoint.tar").touch()
        reference = CheckpointReference(
            name="attempt-1/checkpoint.tar", sha256=_SHA256_OF_NOTHING, size_bytes=0
        )
        for epoch in range(1, epochs + 1):
            self.log(number, 1, epoch)
            is_last = ends and epoch == epochs
            self.lease.record(
                number,
                1,
                Measurement(
                    epoch=epoch,
                    metrics={"loss": 1 / epoch},
                    seconds=1,
                    checkpoint=reference if is_last else None,
                ),
                state=TrialState.COMPLETE if is_last else None,
                value=0.5 if is_last else None,
            )

    def log(self, number: int, attempt: int, *epochs: int) -> None:
        folder = self.storage / attempt_prefix(trial_prefix(self.id, number), attempt)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("a") as log:
            log.writelines(f"2027-01-01 00:00:00,000 INFO epoch {epoch}: {{}}\n" for epoch in epochs)

    def end(self) -> None:
        self.lease.finish_sweep(SweepState.SUCCEEDED)

    def broken(self, told: list[dict[str, Any]] | None = None) -> list[str]:
        return list(
            broken_promises(self.store, self.storage, self.id, self.events() if told is None else told)
        )

    def events(self) -> list[dict[str, Any]]:
        events = self.store.events(self.id)
        return [{"sequence": e.sequence, "kind": e.kind, "data": dict(e.data)} for e in events]


@pytest.fixture
def told(tmp_path: Path) -> Iterator[_Told]:
    with store_in(tmp_path) as store:
        yield _Told(tmp_path, store)


def test_a_sweep_of_which_nothing_is_lost_breaks_no_promise(told: _Told) -> None:
    told.trial(0)
    told.trial(1)
    told.end()
    assert told.broken() == []


def test_a_missing_trial_and_an_open_one_are_told(told: _Told) -> None:
    told.trial(0, ends=False)
    told.end()
    ended = told.broken()
    assert f"{told.id} has trials [0], 2 were asked for" in ended
    assert f"{told.id}, trial 0: is CANCELLED: sweep ended: None" in ended


def test_a_sweep_that_did_not_succeed_and_a_short_trial_are_told(told: _Told) -> None:
    told.trial(0)
    told.trial(1, epochs=1)
    told.lease.finish_sweep(SweepState.FAILED, reason="driver failed")
    assert told.broken() == [
        f"{told.id} ended as FAILED: driver failed: None",
        f"{told.id}, trial 1: has epochs [1]",
    ]


def test_what_was_told_and_is_not_stored_is_told(told: _Told) -> None:
    told.trial(0)
    told.trial(1)
    told.end()
    events = told.events()
    (at,) = [i for i, e in enumerate(events) if e["kind"] == "measurement" and e["data"]["number"] == 1][:1]
    events[at]["data"]["metrics"] = {"loss": 0.9999999999999999}
    assert told.broken(events) == [f"{told.id}, trial 1: epoch 1 was told and is not stored"]
    for other in (events[:-1], [*events, events[-1]], [events[1], events[0], *events[2:]]):
        assert any("events were told" in problem for problem in told.broken(other))


@pytest.mark.parametrize(("damage", "problem"), [("grow", "is damaged"), ("remove", "is not there")])
def test_a_checkpoint_that_is_not_what_its_row_says_is_told(told: _Told, damage: str, problem: str) -> None:
    told.trial(0)
    told.trial(1)
    told.end()
    path = told.storage / attempt_prefix(trial_prefix(told.id, 1), 1) / "checkpoint.tar"
    if damage == "grow":
        path.write_bytes(b"x")
    else:
        path.unlink()
    assert told.broken() == [f"{told.id}, trial 1: its checkpoint attempt-1/checkpoint.tar {problem}"]


def test_epochs_that_were_trained_again_are_counted_and_more_than_one_is_told(told: _Told) -> None:
    told.trial(0, ends=False)
    told.lease.interrupt_trial(0, reason="worker lost")
    told.lease.start_attempt(0, 2, {}, is_baseline=False)
    told.log(0, 2, 2)
    assert redone_epochs(told.store, told.storage, told.id) == (1, [])
    told.lease.interrupt_trial(0, reason="worker lost")
    told.lease.start_attempt(0, 3, {}, is_baseline=False)
    told.log(0, 3, 1, 2)
    num_redone, broken = redone_epochs(told.store, told.storage, told.id)
    assert (num_redone, broken) == (3, [f"{told.id}, trial 0: attempt 3 trained [1, 2] again"])


def test_a_trial_that_measured_otherwise_is_told(told: _Told) -> None:
    told.trial(0)
    told.trial(1)
    undisturbed = curves(told.store, told.id)
    assert unequal_curves(undisturbed, undisturbed) == (2, [])
    key = '{"temperature": 0.2}'
    disturbed = {**undisturbed, key: [undisturbed[key][0], {"loss": 0.5000000000000001}]}
    assert unequal_curves(undisturbed, disturbed) == (2, [f"{key} measured otherwise"])
    assert unequal_curves(undisturbed, {'{"temperature": 0.3}': []}) == (0, [])


def test_what_is_done_is_done_once_and_what_broke_is_done_again(tmp_path: Path) -> None:
    findings = iter([["lost"], ["late"], []])

    def do(home: Path) -> dict[str, Any]:
        assert list(home.iterdir()) == []
        return {"broken": next(findings)}

    for _ in range(5):
        found = kept(tmp_path / "piece.json", do)
    assert (found["broken"], found["broke_before"]) == ([], ["lost", "late"])
    with pytest.raises(StopIteration):
        next(findings)
