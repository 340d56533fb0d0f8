"""What a worker says of a trial that ends by itself, and what the scheduler hears. No cluster is started."""

import errno
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from care_sweep.errors import RankLost, TrialCollapsed, TrialDiverged
from care_sweep.learn import packing as packing_module
from care_sweep.learn import train as train_module
from care_sweep.run import tuning, worker
from care_sweep.run.nodes import Nodes
from care_sweep.run.versions import own_version
from care_sweep.spec import Measurement, Place, TrialConfig

PLACE = Place(actor_id="a1", node_id="b2", log_name="worker-c3.out")
METRICS = {"embedding_spread": 0.1, "validation_knn_accuracy": 0.25}


def reports(
    error: Exception,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    gpus: float = 0.0,
    version: str | None = None,
    asked: dict[str, Any] | None = None,
) -> list[dict[str, str]]:
    """All that the worker reports of a trial that raises; what it raises itself is left aside.

    `asked` gets the options of the training.
    """

    def fail(*_: object, **options: object) -> None:
        if asked is not None:
            asked.update(options)
        raise error

    said: list[dict[str, str]] = []
    monkeypatch.setattr(train_module, "train", fail)
    monkeypatch.setattr(worker, "_dataset", lambda *_: None)
    monkeypatch.setattr(worker.tune, "report", said.append)
    monkeypatch.setattr(worker, "own_place", lambda: PLACE)
    order = {
        "number": 3,
        "attempt": 1,
        "config": TrialConfig().model_dump(),
        "storage_uri": str(directory),
        "prefix": "sweeps/0123456789ab/trials/00003",
        "scratch_directory": str(directory),
        "last_epoch": 0,
        "gpus": gpus,
        "download_directory": str(directory),
        "data_roots": [],
        "data_uris": [],
        "version": version or own_version(),
    }
    with suppress(type(error)):
        worker.run_attempt(order)
    assert said.pop(0) == {"place": PLACE.model_dump_json()}
    return said


def told(result: dict[str, str]) -> list[dict[str, Any]]:
    """What the conductor hears when this report comes."""
    heard: list[dict[str, Any]] = []

    def failed(number: int, attempt: int, **rest: Any) -> None:
        heard.append({"number": number, "attempt": attempt, **rest})

    conductor: Any = SimpleNamespace(failed=failed)
    trial: Any = SimpleNamespace(config={"number": 3, "attempt": 1})
    scheduler = tuning._ConductedScheduler(conductor, Nodes())
    assert scheduler.on_trial_result(None, trial, result) == tuning.TrialScheduler.CONTINUE
    return heard


def test_where_an_attempt_runs_is_told_first() -> None:
    heard: list[Any] = []
    conductor: Any = SimpleNamespace(placed=lambda *what: heard.append(what))
    trial: Any = SimpleNamespace(config={"number": 3, "attempt": 2})
    scheduler = tuning._ConductedScheduler(conductor, Nodes())
    result = {"place": PLACE.model_dump_json()}
    assert scheduler.on_trial_result(None, trial, result) == tuning.TrialScheduler.CONTINUE
    assert heard == [(3, 2, PLACE)]


def test_a_node_with_another_version_trains_nothing_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    (said,) = reports(ValueError(), tmp_path, monkeypatch, version="0.0.1", asked=asked)
    expected = rf"waiting: the driver has care-sweep 0\.0\.1, but .+ \(b2\) has {own_version()}; give all"
    assert re.match(expected, said["interruption"])
    assert not asked


@pytest.mark.parametrize(
    ("number", "then"), [(errno.ENOSPC, "there is room"), (errno.EROFS, "that is mended")]
)
def test_a_disk_that_takes_nothing_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, then: str
) -> None:
    error = OSError(number, os.strerror(number), "/home/care/datasets/s3")
    (said,) = reports(error, tmp_path, monkeypatch)
    wanted = f"/home/care/datasets/s3: {os.strerror(number)}; the sweep goes on once {then}"
    assert said == {"interruption": wanted}


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


def _within(error: Exception, context: Exception) -> Exception:
    error.__context__ = context
    return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("all of it"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported elsewhere"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        _within(RuntimeError("the capture was invalidated"), torch.OutOfMemoryError("no memory")),
    ],
    ids=["host", "allocator", "context", "library", "capture"],
)
def test_want_of_memory_is_a_loss_whoever_lacks_it(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (said,) = reports(error, tmp_path, monkeypatch)
    assert json.loads(said["loss"]) == {"reason": "out of memory", "message": str(error)}


def test_a_process_that_trained_with_it_is_lost_like_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (said,) = reports(RankLost("the process of rank 1 of 2 has died"), tmp_path, monkeypatch, gpus=2.0)
    assert json.loads(said["loss"]) == {
        "reason": "worker lost",
        "message": "the process of rank 1 of 2 has died",
    }


@pytest.mark.parametrize(("gpus", "num_devices"), [(0.0, 1), (0.25, 1), (1.0, 1), (4.0, 4)])
def test_a_trial_trains_on_as_many_devices_as_it_holds_gpus(
    gpus: float, num_devices: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    reports(TrialDiverged("loss nan"), tmp_path, monkeypatch, gpus=gpus, asked=asked)
    assert asked["num_devices"] == num_devices


def test_another_error_is_the_trials_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (said,) = reports(RuntimeError("an illegal memory access"), tmp_path, monkeypatch)
    (heard,) = told(said)
    assert (heard["reason"], heard["message"]) == ("error", "RuntimeError: an illegal memory access")


@pytest.mark.parametrize(("gpus", "shares"), [(0.0, []), (0.25, [0.25]), (1.0, [])])
def test_a_trial_with_a_part_of_a_gpu_is_kept_to_it(
    gpus: float, shares: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[float] = []
    monkeypatch.setattr(packing_module, "keep_to_share", lambda share, _: kept.append(share))
    reports(TrialDiverged("loss nan"), tmp_path, monkeypatch, gpus=gpus)
    assert kept == shares
