"""What a Ray worker does with one attempt at one trial.

The module loads torch only inside the function, since the driver, which never computes, imports it too.
"""

import json
import logging
import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from care_sweep.documents import parse
from care_sweep.errors import CareSweepError, DatasetError, TrialDiverged
from care_sweep.spec import Measurement, TrialConfig

if TYPE_CHECKING:
    from care_sweep.learn.data import Dataset

__all__ = ["run_attempt"]

_LOG = logging.getLogger("care_sweep.trial")


def run_attempt(order: Mapping[str, Any]) -> None:
    """Train as ordered and report each epoch to the driver; `order` is what `driver` made of an `Assignment`.

    A failure of the trial itself is reported with its reason. Divergence and unfit images leave the process
    fit for the next trial; after any other exception Ray replaces it.
    """
    from care_sweep.learn.train import train  # noqa: PLC0415

    directory = Path(order["directory"]) / f"attempt-{order['attempt']}"
    directory.mkdir(parents=True, exist_ok=True)
    with _log_to(directory / "log.txt"):
        try:
            config = parse(TrialConfig, order["config"])
            _LOG.info("trial %d, attempt %d, process %d", order["number"], order["attempt"], os.getpid())
            _LOG.info("configuration: %s", config.model_dump_json())
            data = _dataset(config.dataset, config.resize, Path(order["download_directory"]))
            state = _training_state(Path(order["directory"]), order["last_epoch"])
            train(config, data, _reporter(order), directory=directory, resume_from=state)
        except (TrialDiverged, DatasetError) as error:
            reason = "diverged" if isinstance(error, TrialDiverged) else "dataset"
            _report_failure(order, reason, error)
        except Exception as error:
            _report_failure(order, "error", error)
            raise


@lru_cache(maxsize=2)
def _dataset(name: str, resize: int | None, download_directory: Path) -> "Dataset":
    from care_sweep.learn.data import load_dataset  # noqa: PLC0415

    return load_dataset(name, download_directory=download_directory, resize=resize)


def _training_state(trial_directory: Path, last_epoch: int) -> Path | None:
    """The training state after the last stored epoch, whichever attempt left it."""
    found = sorted(trial_directory.glob(f"attempt-*/state-{last_epoch:05d}.pt"))
    return found[-1] if found else None


def _reporter(order: Mapping[str, Any]) -> Any:
    attempt = order["attempt"]

    def report(measurement: Measurement) -> None:
        _LOG.info("epoch %d: %s", measurement.epoch, measurement.metrics)
        if measurement.checkpoint is not None:
            name = f"attempt-{attempt}/{measurement.checkpoint.name}"
            checkpoint = measurement.checkpoint.model_copy(update={"name": name})
            measurement = measurement.model_copy(update={"checkpoint": checkpoint})
        tune.report({"measurement": measurement.model_dump_json()})  # as text: Tune flattens what is nested

    return report


def _report_failure(order: Mapping[str, Any], reason: str, error: Exception) -> None:
    _LOG.error("trial %d failed: %s\n%s", order["number"], reason, traceback.format_exc())
    named = "" if isinstance(error, CareSweepError) else f"{type(error).__name__}: "
    message = f"{named}{error}"[:4000].replace("\0", "\ufffd")  # PostgreSQL keeps no NUL
    message = message.encode(errors="replace").decode()
    tune.report({"failure": json.dumps({"reason": reason, "message": message})})


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("care_sweep")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
