"""What a worker says of a trial that ends by itself, and what the scheduler hears. No cluster is started."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from care_sweep.errors import TrialCollapsed, TrialDiverged
from care_sweep.learn import train as train_module
from care_sweep.run import tuning, worker
from care_sweep.spec import Measurement, TrialConfig

METRICS = {"embedding_spread": 0.1, "validation_knn_accuracy": 0.25}


def reports(error: Exception, directory: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    def fail(*_: object, **__: object) -> None:
        raise error

    said: list[dict[str, str]] = []
    monkeypatch.setattr(train_module, "train", fail)
    monkeypatch.setattr(worker, "_dataset", lambda *_: None)
    monkeypatch.setattr(worker.tune, "report", said.append)
    order = {
        "number": 3,
        "attempt": 1,
        "config": TrialConfig().model_dump(),
        "storage_uri": str(directory),
        "prefix": "sweeps/0123456789ab/trials/00003",
        "scratch_directory": str(directory),
        "last_epoch": 0,
        "gpus": 0.0,
        "download_directory": str(directory),
        "data_roots": [],
    }
    worker.run_attempt(order)
    return said


def told(result: dict[str, str]) -> list[dict[str, Any]]:
    """What the conductor hears when this report comes."""
    heard: list[dict[str, Any]] = []

    def failed(number: int, attempt: int, **rest: Any) -> None:
        heard.append({"number": number, "attempt": attempt, **rest})

    conductor: Any = SimpleNamespace(failed=failed)
    trial: Any = SimpleNamespace(config={"number": 3, "attempt": 1})
    scheduler = tuning._ConductedScheduler(conductor)
    assert scheduler.on_trial_result(None, trial, result) == tuning.TrialScheduler.CONTINUE
    return heard


def test_a_collapse_is_told_with_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = TrialCollapsed("after epoch 4: one point", epoch=4, metrics=METRICS, seconds=2.0)
    (said,) = reports(error, tmp_path, monkeypatch)
    assert told(json.loads(json.dumps(said))) == [
        {
            "number": 3,
            "attempt": 1,
            "reason": "collapsed",
            "message": "after epoch 4: one point",
            "measurement": Measurement(epoch=4, metrics=METRICS, seconds=2.0),
        }
    ]


def test_divergence_stays_divergence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (said,) = reports(TrialDiverged("loss nan"), tmp_path, monkeypatch)
    (heard,) = told(said)
    assert (heard["reason"], heard["message"], heard["measurement"]) == ("diverged", "loss nan", None)
