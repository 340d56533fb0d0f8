"""Under which keys of the storage do a sweep's files lie? Workers write them, the service serves them."""

import logging
import re

from care_sweep.errors import StorageError
from care_sweep.storage import Storage

__all__ = [
    "LOG_NAME",
    "SWEEPS",
    "attempt_of",
    "attempt_prefix",
    "discard_all",
    "discard_training_states",
    "state_name",
    "sweep_prefix",
    "trial_prefix",
]

_LOG = logging.getLogger(__name__)

SWEEPS = "sweeps"
LOG_NAME = "log.txt"
_STATE = re.compile(r"state-\d{5,}\.pt")


def sweep_prefix(sweep_id: str) -> str:
    """Below it lie its driver's log, and its trials."""
    return f"{SWEEPS}/{sweep_id}"


def trial_prefix(sweep_id: str, number: int) -> str:
    """Below it lies one `attempt-K` an attempt."""
    return f"{sweep_prefix(sweep_id)}/trials/{number:05d}"


def attempt_prefix(trial: str, attempt: int) -> str:
    """Below it lie an attempt's log, training states and checkpoint; `trial` is a `trial_prefix`."""
    return f"{trial}/attempt-{attempt}"


def attempt_of(key: str) -> int:
    """The number of the attempt in whose place the file of this key lies."""
    return int(key.rpartition("/")[0].rpartition("/attempt-")[2])


def state_name(epoch: int) -> str:
    """The name of the training state after an epoch."""
    return f"state-{epoch:05d}.pt"


def discard_all(storage: Storage, sweep_id: str) -> None:
    """Delete all that a sweep has left, once no row points at it; what stays is told in the log."""
    try:
        storage.delete(one.key for one in storage.list(sweep_prefix(sweep_id)))
    except StorageError as error:
        _LOG.warning("what is left of sweep %s could not be deleted: %s", sweep_id, error)


def discard_training_states(
    storage: Storage, prefix: str, *, before_attempt: int | None = None, keep: str | None = None
) -> None:
    """Delete the training states anywhere below a sweep's or a trial's prefix, but for the key `keep`.

    Those of a trial's attempt `before_attempt` and of later ones stay, for such an attempt may be running.
    Where the storage does not let it, all stay until a runner that starts tidies up.
    """
    try:
        found = [one.key for one in storage.list(prefix) if _STATE.fullmatch(one.key.rpartition("/")[2])]
        if before_attempt is not None:
            found = [key for key in found if attempt_of(key) < before_attempt]
        storage.delete(key for key in found if key != keep)
    except StorageError as error:
        _LOG.warning("training states below %s could not be deleted: %s", prefix, error)
