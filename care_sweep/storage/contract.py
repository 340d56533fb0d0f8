"""What does every storage promise? Whole objects under keys, durable once written, never outside its root."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from care_sweep.errors import NotFound, StorageError

__all__ = ["CHUNK_BYTES", "Storage", "StoredObject", "check_key", "holds"]

CHUNK_BYTES = 4 * 2**20
"""As much of an object is in memory at once when it is read."""

_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
_LONGEST_KEY = 800  # S3 takes 1024 bytes with the prefix


@dataclass(frozen=True)
class StoredObject:
    """What is known of an object without reading it.

    `version` differs where the content may: a file's inode, size and times, an object store's ETag.
    `modified_at` is in seconds since 1970 by the storage's clock.
    """

    key: str
    size_bytes: int
    version: str
    modified_at: float


class Storage(Protocol):
    """Objects below one root, by keys such as `sweeps/0123/trials/00001/attempt-1/log.txt`.

    A key is one or more names of letters, digits, `.`, `_` and `-` joined by `/`; no name begins with a dot.
    Every method raises ValueError for another key, and StorageError where the storage is out of reach, full,
    refuses, or answers what cannot be.
    """

    def __hash__(self) -> int:
        """By identity."""

    @property
    def uri(self) -> str:
        """The root, for messages."""

    def check(self) -> None:
        """Return if the storage can be reached, at the price of one request to it."""

    def put(self, key: str, content: bytes, *, overwrite: bool = False) -> StoredObject:
        """Write an object whole or not at all; once this returns, it is durable and was seen in its place.

        Of several that write one key at once, one wins. To write again what is there already is no conflict.

        Raises:
            Conflict: without `overwrite`, the key holds other content.
        """

    def head(self, key: str) -> StoredObject:
        """What there is under a key. Raises NotFound."""

    def read(
        self, key: str, start: int = 0, stop: int | None = None, *, version: str | None = None
    ) -> Iterator[bytes]:
        """The bytes from `start` to before `stop`, at most CHUNK_BYTES at a time; to the end by default.

        Raises:
            NotFound: there is no such object.
            StorageError: it has another version than `version`, or ends before `stop`.
        """

    def list(self, prefix: str, *, strict: bool = False) -> Iterator[StoredObject]:
        """Every object below a prefix, itself a key: `a/b` has `a/b/c` below it, not `a/bc`.

        What others have put there under names that are no keys is passed over, or raises ValueError if
        `strict`.
        """

    def delete(self, keys: Iterable[str]) -> None:
        """Take these objects away; one that is not there is no error."""

    def sweep_temporary_files(self, older_than_seconds: float) -> int:
        """Delete what writers that were killed have left behind; how many there were."""

    def local_path(self, key: str) -> Path | None:
        """Where the object lies on this machine, there already or not; None in an object store.

        Raises:
            NotFound: the path would lead out of the root, by a link.
        """


def check_key(key: str) -> str:
    """The key, if it is one. Raises ValueError."""
    if len(key) > _LONGEST_KEY or not all(map(_PART.fullmatch, key.split("/"))):
        raise ValueError(
            f"{key[:200]!r} is no key: use up to {_LONGEST_KEY} letters, digits, '.', '_', '-' in parts that "
            "are joined by '/' and do not begin with '.'"
        )
    return key


def holds(storage: Storage, key: str, content: bytes) -> bool:
    """Whether exactly this is stored under a key."""
    try:
        if storage.head(key).size_bytes != len(content):
            return False
        found = hashlib.sha256()
        for chunk in storage.read(key):
            found.update(chunk)
    except NotFound:
        raise StorageError(f"{storage.uri}/{key} was there and is no longer; try again") from None
    return found.digest() == hashlib.sha256(content).digest()
