"""What may go from the storage? What a process that was killed left there and no row names."""

import logging
import re
import time
from collections.abc import Iterable, Iterator
from itertools import groupby

from care_sweep.errors import NotFound
from care_sweep.layout import SWEEPS, trial_prefix
from care_sweep.storage import Storage, StoredObject
from care_sweep.store import Store

__all__ = ["tidy_up"]

_LOG = logging.getLogger(__name__)

_YOUNG_SECONDS = 24 * 3600.0
"""What is younger may belong to a writer that is still at work, and the clocks be hours apart."""

_SWEEP_ID = re.compile(r"[0-9a-f]{12}")
_OURS = re.compile(r"sweeps/\w+/trials/\d{5,}/attempt-\d+/(state-\d{5,}\.pt|checkpoint\.tar)")


def tidy_up(storage: Storage, store: Store) -> None:
    """Delete old temporary files, and what ended sweeps keep that no row names. Any process may call it.

    A sweep that the database does not know keeps all it has, and the log names it: a database that was lost
    or restored from a backup, or another one on the same storage, looks the same from here.

    Raises:
        StorageError: the storage is out of reach or refuses.
    """
    num_swept = storage.sweep_temporary_files(_YOUNG_SECONDS)
    if num_swept:
        _LOG.info("%d old temporary files were deleted from %s", num_swept, storage.uri)
    for sweep_id, found in groupby(storage.list(SWEEPS), lambda one: one.key.split("/")[1]):
        if _SWEEP_ID.fullmatch(sweep_id):
            _tidy_sweep(storage, store, sweep_id, list(found))


def _tidy_sweep(storage: Storage, store: Store, sweep_id: str, found: list[StoredObject]) -> None:
    try:
        if not store.state(sweep_id).is_terminal:
            return
    except NotFound:
        _LOG.warning(
            "%s/%s/%s is of no sweep that this database knows; delete it by hand if it is of none at all",
            *(storage.uri, SWEEPS, sweep_id),
        )
        return
    named = set(_named(store, sweep_id))
    unwanted = [one.key for one in _old(found) if _OURS.fullmatch(one.key) and one.key not in named]
    storage.delete(unwanted)
    if unwanted:
        _LOG.info("%d files that nobody needs were deleted from sweep %s", len(unwanted), sweep_id)


def _named(store: Store, sweep_id: str) -> Iterator[str]:
    for trial in store.trials(sweep_id).items:
        if trial.checkpoint is not None:
            yield f"{trial_prefix(sweep_id, trial.number)}/{trial.checkpoint.name}"


def _old(found: Iterable[StoredObject]) -> Iterator[StoredObject]:
    before = time.time() - _YOUNG_SECONDS
    return (one for one in found if one.modified_at < before)
