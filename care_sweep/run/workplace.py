"""Where does an attempt work, and how is what it leaves durable before it is reported?

Where the storage is a folder, an attempt works in its place there and nothing is copied. Where it is an
object store, it works in scratch on its own node, and each epoch's files are uploaded before the report.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from care_sweep.errors import StorageError
from care_sweep.layout import (
    LOG_NAME,
    attempt_of,
    attempt_prefix,
    discard,
    epoch_of,
    state_name,
    training_states,
)
from care_sweep.run.scratch import scratch_folder
from care_sweep.spec import Measurement
from care_sweep.storage import Storage
from care_sweep.storage.durable import make_folder_durably

__all__ = ["Workplace", "workplace"]

_LOG = logging.getLogger("care_sweep.trial")
_LOOK_SECONDS = 1.0  # at the log: what grew is uploaded
_UPLOAD_SHARE = 0.05  # of the time, at most: each upload is of the whole log


@dataclass
class Workplace:
    """The folder in which one attempt works: here its own place, in a storage that is a folder.

    `trial` and `attempt` are the prefixes of both in the storage.
    """

    storage: Storage
    trial: str
    attempt: str
    directory: Path

    def training_states(self, epoch: int) -> Iterator[Path]:
        """The training state to go on from, and the next best, for a state may be damaged.

        They are the latest up to an epoch, of the latest attempt before this, then of the one before: an
        attempt that left any had gone on from those before it, or could not.

        All others of them are deleted. There may be those of later attempts: this may be what is left of one
        that was given up.
        """
        number = attempt_of(self.attempt)
        states = [one for one in training_states(self.storage, self.trial) if attempt_of(one) < number]
        states.sort(key=lambda one: (attempt_of(one), epoch_of(one)), reverse=True)
        kept = [one for one in states if epoch_of(one) <= epoch][:2]
        others = [one for one in states if one not in kept]
        discard(self.storage, others, f"training states below {self.trial}")
        return map(self._fetch, kept)

    def before_report(self, measurement: Measurement) -> None:
        """Have what the measurement stands on durable in the storage, its checkpoint first."""

    def after_report(self, measurement: Measurement) -> None:
        """Delete what nobody will go on from: the two latest states are kept."""

    def _fetch(self, key: str) -> Path:
        path = self.storage.local_path(key)
        assert path is not None
        return path


class _Remote(Workplace):
    """A folder of this node alone, and its copy in an object store."""

    def before_report(self, measurement: Measurement) -> None:
        names = [state_name(measurement.epoch)]
        if measurement.checkpoint is not None:
            names.insert(0, measurement.checkpoint.name)
        for name in names:
            self.storage.put(f"{self.attempt}/{name}", (self.directory / name).read_bytes())

    def after_report(self, measurement: Measurement) -> None:
        with suppress(StorageError):  # they go when the trial ends
            self.storage.delete([f"{self.attempt}/{state_name(measurement.epoch - 2)}"])

    @contextmanager
    def log_uploaded(self) -> Iterator[None]:
        """Have the log follow as it grows, for the length of a `with`, and all of it at the end."""
        ended = threading.Event()
        uploader = threading.Thread(target=self._upload_log, args=(ended,), name="log", daemon=True)
        uploader.start()
        try:
            yield
        finally:
            ended.set()
            uploader.join()

    def _upload_log(self, ended: threading.Event) -> None:
        log, size, pause, is_last = self.directory / LOG_NAME, 0, _LOOK_SECONDS, False
        while not is_last:
            is_last = ended.wait(pause)
            try:
                if log.stat().st_size > size:
                    content, began = log.read_bytes(), time.monotonic()
                    self.storage.put(f"{self.attempt}/{LOG_NAME}", content, overwrite=True)
                    size, pause = len(content), max(_LOOK_SECONDS, (time.monotonic() - began) / _UPLOAD_SHARE)
            except (StorageError, OSError) as error:
                if is_last:
                    _LOG.warning("the log of %s could not be uploaded: %s", self.attempt, error)

    def _fetch(self, key: str) -> Path:
        path = self.directory / key.rpartition("/")[2]
        with path.open("wb") as file:
            file.writelines(self.storage.read(key))
        return path


@contextmanager
def workplace(
    storage: Storage, trial: str, attempt_number: int, scratch_directory: Path
) -> Iterator[Workplace]:
    """The place of one attempt, for the length of a `with`. Its log is the file `LOG_NAME` there.

    Raises:
        StorageError: the object store is out of reach, full, or refuses.
        OSError: a disk is.
    """
    attempt = attempt_prefix(trial, attempt_number)
    directory = storage.local_path(attempt)
    if directory is not None:
        make_folder_durably(directory)
        yield Workplace(storage, trial, attempt, directory)
        return
    with scratch_folder(scratch_directory, "attempt-") as scratch:
        place = _Remote(storage, trial, attempt, scratch)
        with place.log_uploaded():
            yield place
