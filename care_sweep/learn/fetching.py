"""How do images in an object store come to this machine? Once, by one process, whole or not at all.

What lies below a prefix is known by the names, sizes and versions of its objects. A folder of the cache
holds one such state, and takes its name once it is complete. What nobody has used for a week goes when the
next is fetched, and the operator may delete anything while nothing runs here.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from care_sweep.errors import DatasetError, NotFound, StorageError
from care_sweep.storage import Storage, StoredObject, open_storage

__all__ = ["fetch"]

_LOG = logging.getLogger("care_sweep.trial")
_PARTIAL = ".part"
_AT_ONCE = 8  # a folder of images is many small objects
_KEPT_SECONDS = 7 * 86400.0  # since it was last used; a trial reads all of it when it starts


def fetch(uri: str, cache: Path) -> Path:
    """The folder of this machine that holds what lies at `uri`, or the file if it names one object.

    Raises:
        DatasetError: nothing lies there, or a name cannot be kept.
        StorageError: the object store is out of reach, refuses, or what is there changed meanwhile.
        OSError: the disk is full.
    """
    parent, _, last = uri.rpartition("/")
    storage = open_storage(parent)
    found = _listed(storage, last, uri)
    folder = cache / f"{last[:40]}-{_state_of(uri, found)[:32]}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(folder, uri):
            if not folder.is_dir():
                _discard_unused(cache)
                _fetch_all(storage, found, folder, uri)
    with suppress(OSError):  # it may be the operator's, and not ours to change
        os.utime(folder)
    return folder / last


def _listed(storage: Storage, last: str, uri: str) -> Sequence[StoredObject]:
    try:
        found = sorted(storage.list(last, strict=True), key=lambda one: one.key) or [storage.head(last)]
    except ValueError as error:
        raise DatasetError(f"{uri} holds an object whose name cannot be kept: {error}") from error
    except NotFound:
        raise DatasetError(f"there is nothing at {uri}; put the images there, or correct the name") from None
    folders = {str(parent) for one in found for parent in PurePosixPath(one.key).parents}
    return [one for one in found if one.size_bytes or one.key not in folders]  # a console's mark of a folder


def _state_of(uri: str, found: Sequence[StoredObject]) -> str:
    digest = hashlib.sha256(uri.encode())
    for one in found:
        digest.update(f"\n{one.key} {one.size_bytes} {one.version}".encode())
    return digest.hexdigest()


@contextmanager
def _alone(folder: Path, uri: str) -> Iterator[None]:
    """Keep other processes of this machine from fetching the same, for the length of a `with`."""
    with folder.with_name(f"{folder.name}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOG.info("waiting while another process fetches %s", uri)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _discard_unused(cache: Path) -> None:
    """Folders that were not used for long. They lose their names first, so that what has one is whole."""
    for folder in cache.glob("*/"):
        name = folder.name.removesuffix(_PARTIAL)
        with suppress(OSError), folder.with_name(f"{name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # or another process is at it
            if folder.stat().st_mtime < time.time() - _KEPT_SECONDS:
                _LOG.info("deleting %s, which was not used for a week", folder)
                shutil.rmtree(folder.rename(folder.with_name(name + _PARTIAL)))


def _fetch_all(storage: Storage, found: Sequence[StoredObject], folder: Path, uri: str) -> None:
    size = sum(one.size_bytes for one in found)
    _LOG.info("fetching %s: %d objects, %.1f MB", uri, len(found), size / 1e6)
    partial = folder.with_name(folder.name + _PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    try:
        for parent in {(partial / one.key).parent for one in found}:
            parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for _ in pool.map(lambda one: _fetch_one(storage, one, partial / one.key), found):
                pass
        os.sync()  # before the name says that all of it is there
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _LOG.info("fetched %s to %s", uri, folder)


def _fetch_one(storage: Storage, one: StoredObject, path: Path) -> None:
    with path.open("wb") as file:
        file.writelines(storage.read(one.key, 0, one.size_bytes, version=one.version))
        size = file.tell()
    if size != one.size_bytes:
        raise StorageError(f"{storage.uri}/{one.key} has {size} bytes here and {one.size_bytes} there")
