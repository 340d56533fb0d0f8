"""Under which keys of the storage do a sweep's files lie? Workers write them, the service serves them."""

import logging
import re
from collections.abc import Iterable, Iterator

from care_sweep.errors import StorageError
from care_sweep.storage import Storage

__all__ = [
    "LOG_NAME",
    "SWEEPS",
    "attempt_of",
    "attempt_prefix",
    "discard",
    "discard_all",
    "discard_training_states",
    "epoch_of",
    "state_name",
    "sweep_prefix",
    "training_states",
    "trial_prefix",
]

_LOG = logging.getLogger(__name__)

SWEEPS = "sweeps"
LOG_NAME = "log.txt"
_STATE = re.compile(r"state-(\d{5,})\.pt")
_ATTEMPT = re.compile(r"/attempt-(\d+)(?:/|$)")


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
    """The number of the attempt in whose place the file of this key lies, or whose prefix it is."""
    found = _ATTEMPT.search(key)
    assert found is not None, f"{key} lies in the place of no attempt"
    return int(found.group(1))


def state_name(epoch: int) -> str:
    """The name of the training state after an epoch."""
    return f"state-{epoch:05d}.pt"


def epoch_of(key: str) -> int:
    """The epoch after which the training state of this key was left."""
    found = _STATE.fullmatch(key.rpartition("/")[2])
    assert found is not None, f"{key} is no training state"
    return int(found.group(1))


def discard_all(storage: Storage, sweep_id: str) -> None:
    """Delete all that a sweep has left, once no row points at it."""
    discard(storage, _below(storage, sweep_prefix(sweep_id)), f"what is left of sweep {sweep_id}")


def discard_training_states(storage: Storage, prefix: str) -> None:
    """Delete the training states anywhere below a sweep's or a trial's prefix."""
    discard(storage, training_states(storage, prefix), f"training states below {prefix}")


def training_states(storage: Storage, prefix: str) -> Iterator[str]:
    """Their keys, anywhere below a sweep's or a trial's prefix."""
    for key in _below(storage, prefix):
        if _STATE.fullmatch(key.rpartition("/")[2]):
            yield key


def discard(storage: Storage, keys: Iterable[str], what: str) -> None:
    """Delete what nobody points at. What the storage does not let go stays until a runner that starts tidies
    up, and the log tells `what`."""
    try:
        storage.delete(list(keys))
    except StorageError as error:
        _LOG.warning("%s could not be deleted: %s", what, error)


def _below(storage: Storage, prefix: str) -> Iterator[str]:
    """A storage that cannot be listed is told of when the first key is asked for."""
    for one in storage.list(prefix):
        yield one.key
