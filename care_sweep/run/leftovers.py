"""What do drivers leave behind, and where does it go? Their logs, and states that nobody goes on from."""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from care_sweep.layout import discard_all, discard_training_states, sweep_prefix
from care_sweep.storage import Storage
from care_sweep.store import Store

__all__ = ["DriverLog", "Leftovers"]

_LATE_WRITE_SECONDS = 30.0
"""By then Ray has ended the workers of a driver that has gone."""

_LOG = logging.getLogger("care_sweep.runner")


@dataclass(frozen=True)
class DriverLog:
    """The file that one driver logs to, and its key in the storage."""

    path: Path
    key: str


class Leftovers:
    """Hears what drivers leave, and puts it away whenever `tend` is called: an object store may take long,
    so that is done in a thread of its own.

    Where the storage is a folder, all drivers of a sweep append to one file there. An object store takes each
    driver's log when it has ended; until then it is a file of `home`.
    """

    def __init__(
        self, storage: Storage, store: Store, home: Path, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._storage, self._store, self._home, self._monotonic = storage, store, home, monotonic
        self._logs: deque[DriverLog] = deque()
        self._cancelled: deque[str] = deque()
        self._left: deque[tuple[float, str]] = deque()

    def log_of(self, sweep_id: str, token: int) -> DriverLog:
        """Where the driver that holds the sweep by this fencing token logs to."""
        key = f"{sweep_prefix(sweep_id)}/driver.log"
        place = self._storage.local_path(key)
        if place is not None:
            return DriverLog(place, key)
        key = f"{sweep_prefix(sweep_id)}/driver-{token:05d}.log"
        return DriverLog(self._home / "logs" / key.replace("/", "-"), key)

    def driver_ended(self, sweep_id: str, log: DriverLog) -> None:
        """Its workers may not have: what they still write is looked for later."""
        self._left.append((self._monotonic(), sweep_id))
        if self._storage.local_path(log.key) is None:
            self._logs.append(log)

    def sweep_cancelled(self, sweep_id: str) -> None:
        """Nobody goes on from its states; where a worker still writes one, it goes later."""
        self._cancelled.append(sweep_id)
        self._left.append((self._monotonic(), sweep_id))

    def tend(self) -> None:
        """Put away what is due. What raises stays for the next time.

        Raises:
            DatabaseUnavailable: whether somebody wants what was left cannot be told now.
            StorageError: the storage takes no log now.
        """
        while self._cancelled:
            discard_training_states(self._storage, sweep_prefix(self._cancelled[0]))
            self._cancelled.popleft()
        while self._left and self._monotonic() - self._left[0][0] > _LATE_WRITE_SECONDS:
            self._discard_late_writes(self._left[0][1])
            self._left.popleft()
        while self._logs:
            self._upload(self._logs[0])
            self._logs.popleft()

    def _upload(self, log: DriverLog) -> None:
        try:
            self._storage.put(log.key, log.path.read_bytes(), overwrite=True)
            log.path.unlink()
        except OSError as error:
            _LOG.warning("the driver's log %s is lost: %s", log.path, error)

    def _discard_late_writes(self, sweep_id: str) -> None:
        """Delete what workers wrote after their driver's end and nobody wants any more."""
        sweep = self._store.hold(sweep_id)
        if sweep is None:
            discard_all(self._storage, sweep_id)
        elif sweep.state.is_terminal:
            discard_training_states(self._storage, sweep_prefix(sweep_id))
