"""What a person reads in a terminal of 80 or 120 columns: no number, date or id breaks, names are cut."""

import io
from typing import Any

import pytest
from rich.console import Console, RenderableType

from care_sweep.tables import best_view, sweep_view, sweeps_table

WIDTHS = pytest.mark.parametrize("width", [80, 120])
PARAMETERS = {"equivariance_weight": 0.01234, "temperature": 0.5123, "augmentation_strength": 1.2345}
MOMENT = "2026-11-23T16:18:51.123456+00:00"


def _shown(view: RenderableType, width: int) -> list[str]:
    written = io.StringIO()
    Console(file=written, width=width, color_system=None).print(view)
    lines = written.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    return lines


def _sweep(name: str, **changes: Any) -> Any:
    sweep = {
        "id": "0123456789ab",
        "name": name,
        "state": "CANCELLED",
        "reason": None,
        "message": None,
        "space": "a-space-of-a-rather-long-name",
        "metric": "validation_knn_accuracy",
        "num_trials": 1000,
        "trial_counts": {"COMPLETE": 999},
        "enqueued": [],
        "created_at": MOMENT,
        "finished_at": MOMENT,
    }
    return {**sweep, **changes}


@WIDTHS
def test_a_sweep_is_a_line(width: int) -> None:
    sweeps = [_sweep("short"), _sweep("of many words " * 7), _sweep("x" * 100), _sweep("実験" * 50)]
    _, *lines = _shown(sweeps_table(sweeps), width)
    assert len(lines) == len(sweeps)
    for line in lines:
        assert line.startswith("0123456789ab")
        assert "999 of 1000" in line
        assert "2026-11-2" in line and ":51" not in line
    assert all("…" in line for line in lines[1:])


@WIDTHS
@pytest.mark.parametrize("reason", [None, "out of memory"])
def test_the_numbers_of_a_trial_stay_whole(width: int, reason: str | None) -> None:
    trial: Any = {
        "number": 12345,
        "state": "INFEASIBLE",
        "reason": reason,
        "value": None,
        "metrics": {"validation_knn_accuracy": 0.51234},
        "last_epoch": 10000,
        "parameters": PARAMETERS,
        "is_baseline": True,
    }
    lines = _shown(sweep_view(_sweep("x" * 100), [trial]), width)
    text = "\n".join(lines)
    for whole in ("12345", "0.5123", "10000", "equivariance_weight=0.01234,", "temperature=0.5123,"):
        assert whole in text
    assert "augmentation_strength=1.234" in text
    assert "baseline: " in text


@WIDTHS
def test_the_numbers_of_a_ranking_stay_whole(width: int) -> None:
    one = {"rank": 100, "number": 12345, "value": 0.5, "standard_error": 0.025, "is_baseline": False}
    best: Any = {
        "metric": "validation_knn_accuracy",
        "configurations": [{**one, "values": PARAMETERS}],
        "baselines": [],
        "comparisons": [],
        "importance": {"method": "none", "importances": None, "reason": None},
        "evidence": "none",
    }
    text = "\n".join(_shown(best_view(best), width))
    for whole in ("validation_knn_accuracy", "0.5000 ± 0.0250", "equivariance_weight=0.01234,", "=1.234"):
        assert whole in text
