"""What a Ray worker does with one attempt at one trial.

The module loads torch only inside the function, since the driver, which never computes, imports it too.
"""

import errno
import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from care_sweep.documents import parse
from care_sweep.errors import (
    CareSweepError,
    DatasetError,
    RankLost,
    StateDamaged,
    StorageError,
    TrialCollapsed,
    TrialDiverged,
)
from care_sweep.layout import LOG_NAME
from care_sweep.run.versions import own_version, unfit
from care_sweep.run.workplace import Workplace, workplace
from care_sweep.spec import Measurement, Place, TrialConfig
from care_sweep.storage import open_storage

if TYPE_CHECKING:
    from care_sweep.learn.data import Dataset

__all__ = ["own_place", "run_attempt"]

_LOG = logging.getLogger("care_sweep.trial")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_DISK_TROUBLE = (*_NO_ROOM, errno.EIO, errno.ESTALE, errno.EROFS)

_WANT_OF_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""What contexts, graphs and libraries say of it, whose memory is not torch's."""


def run_attempt(order: Mapping[str, Any]) -> None:
    """Train as ordered and report each epoch to the driver; `order` is what `tuning` made of an `Assignment`.

    First of all it reports where it runs, and trains only where the driver has the same version: an
    interruption says that they differ, for the node may have come later than the sweep.
    A failure of the trial itself is reported with its reason, a collapse with what was measured too, want of
    memory and the death of a process that trained with this one as a loss, an unusable disk or object store
    as an interruption. After divergence, collapse, unfit images and an interruption the process is fit for
    the next trial; after any other exception Ray replaces it.
    """
    here = own_place()
    tune.report({"place": here.model_dump_json()})
    host = f"{socket.gethostname()} ({here.node_id[:8]})"
    if said := unfit({host: own_version()}, order.get("version", "none that it tells")):
        tune.report({"interruption": said, "interrupted_by": "version"})
        return
    try:
        storage, scratch = open_storage(order["storage_uri"]), Path(order["scratch_directory"])
        with (
            workplace(storage, order["prefix"], order["attempt"], scratch) as place,
            _log_to(place.directory / LOG_NAME),
        ):
            _train(order, place)
    except TrialCollapsed as error:
        seen = Measurement(epoch=error.epoch, metrics=error.metrics, seconds=error.seconds)
        _report_failure("collapsed", error, seen)
    except TrialDiverged as error:
        _report_failure("diverged", error)
    except DatasetError as error:
        _report_failure("dataset", error)
    except RankLost as error:
        _report_loss("worker lost", error)
        raise  # what it shared with that process may be left in any state
    except StorageError as error:
        tune.report({"interruption": f"{error}; the sweep goes on once that is mended"})
    except Exception as error:
        if _is_out_of_memory(error):
            _report_loss("out of memory", error)
            raise  # the process that could not allocate is not kept
        if not isinstance(error, OSError) or error.errno not in _DISK_TROUBLE:
            _report_failure("error", error)
            raise
        where = error.filename or order["storage_uri"]
        then = "there is room" if error.errno in _NO_ROOM else "that is mended"
        tune.report({"interruption": f"{where}: {error.strerror}; the sweep goes on once {then}"})


def own_place() -> Place:
    """Where this worker, which Tune started, runs."""
    context = ray.get_runtime_context()
    actor_id = context.get_actor_id()
    assert actor_id is not None, "Tune runs trials in actors"
    return Place(
        actor_id=actor_id,
        node_id=context.get_node_id(),
        log_name=Path(context.worker.get_out_file_path()).name or None,
        gpus=tuple(sorted(map(str, ray.get_gpu_ids()))),
    )


def _train(order: Mapping[str, Any], place: Workplace) -> None:
    from care_sweep.learn.packing import keep_to_share  # noqa: PLC0415
    from care_sweep.learn.train import default_device, train  # noqa: PLC0415

    try:
        _LOG.info("trial %d, attempt %d, process %d", order["number"], order["attempt"], os.getpid())
        config = parse(TrialConfig, order["config"])
        _LOG.info("configuration: %s", config.model_dump_json())
        if 0 < order["gpus"] < 1:
            keep_to_share(order["gpus"], default_device())
        data = _dataset(
            config.dataset,
            config.resize,
            Path(order["download_directory"]),
            tuple(order["data_roots"]),
            tuple(order["data_uris"]),
        )
        train_here = partial(
            train,
            config,
            data,
            _reporter(order, place),
            directory=place.directory,
            num_devices=max(1, int(order["gpus"])),
        )
        for state in chain(place.training_states(order["last_epoch"]), [None]):
            _LOG.info("goes on from %s", state) if state else _LOG.info("begins anew")
            try:
                train_here(resume_from=state)
                break
            except StateDamaged as error:  # what the driver has heard already it leaves aside
                _LOG.warning("%s", error)
    except Exception:
        _LOG.exception("trial %d failed", order["number"])
        raise


@lru_cache(maxsize=2)
def _dataset(
    name: str,
    resize: int | None,
    download_directory: Path,
    data_roots: tuple[str, ...],
    data_uris: tuple[str, ...],
) -> "Dataset":
    """On the device, so that the trials of a process share it there too."""
    from care_sweep.learn.data import load_dataset  # noqa: PLC0415
    from care_sweep.learn.train import default_device  # noqa: PLC0415

    roots = [Path(root) for root in data_roots]
    data = load_dataset(
        name, download_directory=download_directory, roots=roots, uris=data_uris, resize=resize
    )
    return data.on(default_device())


def _reporter(order: Mapping[str, Any], place: Workplace) -> Any:
    attempt = order["attempt"]

    def report(measurement: Measurement) -> None:
        _LOG.info("epoch %d: %s", measurement.epoch, measurement.metrics)
        place.before_report(measurement)
        if measurement.checkpoint is not None:
            name = f"attempt-{attempt}/{measurement.checkpoint.name}"
            checkpoint = measurement.checkpoint.model_copy(update={"name": name})
            measurement = measurement.model_copy(update={"checkpoint": checkpoint})
        tune.report({"measurement": measurement.model_dump_json()})  # as text: Tune flattens what is nested
        place.after_report(measurement)

    return report


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether it, or what it came of, is want of memory: on a GPU not only torch's allocator can lack it."""
    import torch  # noqa: PLC0415

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _WANT_OF_MEMORY):
        return True
    return error.__context__ is not None and _is_out_of_memory(error.__context__)


def _report_loss(reason: str, error: Exception) -> None:
    tune.report({"loss": json.dumps({"reason": reason, "message": _storable(str(error))})})


def _report_failure(reason: str, error: Exception, measurement: Measurement | None = None) -> None:
    named = "" if isinstance(error, CareSweepError) else f"{type(error).__name__}: "
    report = {"failure": json.dumps({"reason": reason, "message": _storable(f"{named}{error}")})}
    if measurement is not None:
        report["measurement"] = measurement.model_dump_json()
    tune.report(report)


def _storable(message: str) -> str:
    """What of it a database keeps: PostgreSQL no NUL, and none a surrogate."""
    return message[:4000].replace("\0", "\ufffd").encode(errors="replace").decode()


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
