"""A sweep's events as a picture: counts, best so far and time left, from the service's own clock."""

import io
from typing import Any

import pytest
from rich.console import Console

from care_sweep.answers import Event, Sweep
from care_sweep.spec import TrialConfig
from care_sweep.watching import SweepProgress, watch

SWEEP: Any = {
    "id": "abc",
    "name": "first look",
    "metric": "validation_knn_accuracy",
    "num_trials": 4,
    "spec": {"space": {"fixed": {"epochs": 10}}},
}


def _event(kind: str, second: int, **data: Any) -> Event:
    return {"sequence": second, "kind": kind, "recorded_at": f"2026-01-01T00:00:{second:02}Z", "data": data}


EVENTS = [
    _event("sweep", 0, state="QUEUED"),
    _event("sweep", 10, state="RUNNING"),
    _event("trial", 11, number=0, state="RUNNING", attempt=1),
    _event("trial", 12, number=1, state="RUNNING", attempt=1),
    _event("measurement", 20, number=1, epoch=5, metrics={"validation_knn_accuracy": 0.25}),
    _event("trial", 30, number=0, state="COMPLETE", value=0.5),
]


def test_progress() -> None:
    progress = SweepProgress.of(SWEEP)
    for event in EVENTS:
        progress.apply(event)
    assert (progress.best_number, progress.best_value) == (0, 0.5)
    assert progress.counts == {"COMPLETE": 1, "RUNNING": 1}
    assert progress.share_done == pytest.approx(1.5 / 4)
    assert progress.seconds_left == pytest.approx(20 * 2.5 / 1.5)
    assert progress.summary() == "1 of 4 trials, best 0.5000 (trial 0), about 33 s left"
    progress.apply(_event("trial", 31, number=1, state="PRUNED", value=None))
    assert progress.num_ended == 2
    progress.apply(_event("sweep", 32, state="SUCCEEDED"))
    assert "left" not in progress.summary()


def test_clocks_that_disagree_leave_no_time_to_tell() -> None:
    """The sweep was claimed by a runner whose clock is ahead of its driver's."""
    progress = SweepProgress.of(SWEEP)
    for event in (*EVENTS, _event("trial", 5, number=1, state="PRUNED", value=None)):
        progress.apply(event)
    assert progress.seconds_left is None
    assert "left" not in progress.summary()


def test_of_two_that_are_equal_the_first_is_the_best() -> None:
    """As `best` ranks them."""
    progress = SweepProgress.of(SWEEP)
    for second, number in enumerate((2, 1, 3)):
        progress.apply(_event("trial", second, number=number, state="COMPLETE", value=0.0))
    assert (progress.best_number, progress.best_value) == (1, 0.0)


def test_epochs_that_no_space_fixes_are_the_default() -> None:
    sweep = {**SWEEP, "spec": {"space": {"fixed": {}}}}
    assert SweepProgress.of(sweep).epochs == TrialConfig.model_fields["epochs"].default


@pytest.mark.parametrize("is_terminal", [True, False])
def test_what_is_shown(is_terminal: bool) -> None:
    written = io.StringIO()
    sweep: Sweep = SWEEP
    console = Console(file=written, force_terminal=is_terminal, width=120, color_system=None)
    assert watch(console, sweep, EVENTS).state == "RUNNING"
    shown = written.getvalue()
    assert "best 0.5000 (trial 0)" in shown
    assert ("epoch 5 of 10" in shown) == is_terminal
    assert ("trial 0 COMPLETE 0.5000" in shown) != is_terminal
