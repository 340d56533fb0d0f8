"""What a Ray worker does with one attempt at one trial.

The module loads torch only inside the function, since the driver, which never computes, imports it too.
"""

import errno
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from care_sweep.documents import parse
from care_sweep.errors import CareSweepError, DatasetError, TrialCollapsed, TrialDiverged
from care_sweep.layout import discard_training_states
from care_sweep.spec import Measurement, TrialConfig

if TYPE_CHECKING:
    from care_sweep.learn.data import Dataset

__all__ = ["run_attempt"]

_LOG = logging.getLogger("care_sweep.trial")
_DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS)


def run_attempt(order: Mapping[str, Any]) -> None:
    """Train as ordered and report each epoch to the driver; `order` is what `tuning` made of an `Assignment`.

    A failure of the trial itself is reported with its reason, a collapse with what was measured too, want of
    memory as a loss, an unusable disk as an interruption. After divergence, collapse, unfit images and a full
    disk the process is fit for the next trial; after any other exception Ray replaces it.
    """
    try:
        directory = Path(order["directory"]) / f"attempt-{order['attempt']}"
        directory.mkdir(parents=True, exist_ok=True)
        with _log_to(directory / "log.txt"):
            _train(order, directory)
    except TrialCollapsed as error:
        seen = Measurement(epoch=error.epoch, metrics=error.metrics, seconds=error.seconds)
        _report_failure("collapsed", error, seen)
    except TrialDiverged as error:
        _report_failure("diverged", error)
    except DatasetError as error:
        _report_failure("dataset", error)
    except Exception as error:
        if _is_out_of_memory(error):
            loss = {"reason": "out of memory", "message": str(error)[:4000]}
            tune.report({"loss": json.dumps(loss)})
            raise  # the process that could not allocate is not kept
        if not isinstance(error, OSError) or error.errno not in _DISK_TROUBLE:
            _report_failure("error", error)
            raise
        where = error.filename or order["directory"]
        tune.report({"interruption": f"{where}: {error.strerror}; the sweep goes on once there is room"})


def _train(order: Mapping[str, Any], directory: Path) -> None:
    from care_sweep.learn.train import train  # noqa: PLC0415

    try:
        _LOG.info("trial %d, attempt %d, process %d", order["number"], order["attempt"], os.getpid())
        config = parse(TrialConfig, order["config"])
        _LOG.info("configuration: %s", config.model_dump_json())
        state = _training_state(Path(order["directory"]), order["last_epoch"])
        _LOG.info("goes on from %s", state) if state else _LOG.info("begins anew")
        data = _dataset(
            config.dataset, config.resize, Path(order["download_directory"]), tuple(order["data_roots"])
        )
        train(config, data, _reporter(order), directory=directory, resume_from=state)
    except Exception:
        _LOG.exception("trial %d failed", order["number"])
        raise


@lru_cache(maxsize=2)
def _dataset(
    name: str, resize: int | None, download_directory: Path, data_roots: tuple[str, ...]
) -> "Dataset":
    from care_sweep.learn.data import load_dataset  # noqa: PLC0415

    roots = [Path(root) for root in data_roots]
    return load_dataset(name, download_directory=download_directory, roots=roots, resize=resize)


def _training_state(trial_directory: Path, last_epoch: int) -> Path | None:
    """The training state after the last stored epoch, whichever attempt left it; older ones are deleted."""
    found = sorted(trial_directory.glob(f"attempt-*/state-{last_epoch:05d}.pt"))
    state = found[-1] if found else None
    discard_training_states(trial_directory, keep=state)
    return state


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


def _is_out_of_memory(error: Exception) -> bool:
    import torch  # noqa: PLC0415

    return isinstance(error, MemoryError | torch.OutOfMemoryError)


def _report_failure(reason: str, error: Exception, measurement: Measurement | None = None) -> None:
    named = "" if isinstance(error, CareSweepError) else f"{type(error).__name__}: "
    message = f"{named}{error}"[:4000].replace("\0", "\ufffd")  # PostgreSQL keeps no NUL
    message = message.encode(errors="replace").decode()
    report = {"failure": json.dumps({"reason": reason, "message": message})}
    if measurement is not None:
        report["measurement"] = measurement.model_dump_json()
    tune.report(report)


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
