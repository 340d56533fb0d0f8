"""How does an S3 bucket keep objects? By PUT, which is atomic, and conditional where it must not replace."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast

from care_sweep.errors import Conflict, NotFound, StorageError
from care_sweep.storage.contract import CHUNK_BYTES, StoredObject, check_key, holds

try:
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
    from obstore.store import S3Store
except ImportError as missing:
    raise StorageError(
        "an S3 bucket is to be used, for which obstore is not installed: pip install 'care-sweep[s3]'"
    ) from missing

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta
    from obstore.store import RetryConfig, S3Config

__all__ = ["Bucket"]

_TIMEOUTS = {
    "connect_timeout": "5s",
    "timeout": "600s",  # of one request: 30 s by default, too short for a large state on a slow link
}
_RETRIES: "RetryConfig" = {"max_retries": 3, "retry_timeout": timedelta(seconds=60)}


class Bucket:
    """The storage below a prefix of an S3 bucket, or of what speaks its protocol.

    What the library says of an error never reaches a message or a log: it repeats answers of the server,
    which name access keys.
    """

    def __init__(self, bucket: str, prefix: str) -> None:
        self._uri = f"s3://{bucket}/{prefix}".rstrip("/")
        unset = {name: value for name, value in _TIMEOUTS.items() if f"AWS_{name.upper()}" not in os.environ}
        config = cast("S3Config", unset)  # its type does not list them, yet they leave others of AWS_* be
        with self._told(""):
            self._store = S3Store(bucket, prefix=prefix or None, config=config, retry_config=_RETRIES)

    @property
    def uri(self) -> str:
        return self._uri

    def check(self) -> None:
        with self._told(""):
            next(iter(self._store.list("none")), None)  # unlike a HEAD it tells a missing bucket

    def put(self, key: str, content: bytes, *, overwrite: bool = False) -> StoredObject:
        check_key(key)
        written = None
        try:
            with self._told(key):
                written = self._store.put(
                    key, content, mode="overwrite" if overwrite else "create", use_multipart=False
                )["e_tag"]
        except Conflict:
            if not holds(self, key, content):  # the answer to a first try may have been lost
                raise
        stored = self.head(key)
        if stored.size_bytes != len(content) or (written and written != stored.version):
            raise StorageError(f"{self.uri}/{key} is not what was just written there; try again")
        return stored

    def head(self, key: str) -> StoredObject:
        with self._told(check_key(key)):
            return _stored(self._store.head(key))

    def read(
        self, key: str, start: int = 0, stop: int | None = None, *, version: str | None = None
    ) -> Iterator[bytes]:
        if stop is None:
            found = self.head(key)
            stop, version = found.size_bytes, version or found.version
        elif start >= stop:
            self.head(key)
        while start < stop:  # a request for each chunk, so that a slow reader keeps no request open
            wanted = min(CHUNK_BYTES, stop - start)
            chunk = self._range(check_key(key), start, start + wanted, version)
            if len(chunk) != wanted:
                raise StorageError(f"{self.uri}/{key} became shorter while it was read; ask again")
            start += wanted
            yield chunk

    def list(self, prefix: str, *, strict: bool = False) -> Iterator[StoredObject]:
        with self._told(check_key(prefix)):
            pages = iter(self._store.list(prefix, chunk_size=1000))
        while True:
            with self._told(prefix):
                page = next(pages, None)
            if page is None:
                return
            for found in page:
                try:
                    check_key(found["path"])
                except ValueError:
                    if strict:
                        raise
                    continue  # none of ours
                yield _stored(found)

    def delete(self, keys: Iterable[str]) -> None:
        unwanted = [check_key(key) for key in keys]
        if unwanted:
            with self._told(unwanted[0]):
                self._store.delete(unwanted)

    def sweep_temporary_files(self, older_than_seconds: float) -> int:
        return 0  # a PUT that breaks off leaves nothing, and no object is uploaded in parts

    def local_path(self, key: str) -> Path | None:
        check_key(key)
        return None

    def _range(self, key: str, start: int, stop: int, version: str | None) -> bytes:
        with self._told(key):
            options: GetOptions = {"range": (start, stop)}
            if version is not None:
                options["if_match"] = version
            return bytes(self._store.get(key, options=options).bytes())

    @contextmanager
    def _told(self, key: str) -> Iterator[None]:
        """Say the library's error in the words of the contract, and no more of it than that."""
        place = f"{self.uri}/{key}".rstrip("/")
        try:
            yield
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise StorageError(f"{place}: there is no such bucket; make it first") from None
            raise NotFound(f"there is no {place}") from None
        except AlreadyExistsError:
            raise Conflict(f"{place} is there already with other content") from None
        except PreconditionError:
            raise StorageError(f"{place} was replaced while it was read; ask again") from None
        except (BaseError, OSError, ValueError) as error:
            raise StorageError(f"{place}: {_reason(str(error))}") from None


def _stored(found: "ObjectMeta") -> StoredObject:
    modified_at = found["last_modified"].timestamp()
    version = found["e_tag"] or f"{found['size']}-{modified_at}"
    return StoredObject(found["path"], found["size"], version, modified_at)


def _reason(said: str) -> str:
    """What went wrong, by the server's status and code alone."""
    status = re.search(r"status code: (\d{3})", said)
    code = re.search(r"<Code>(\w{1,60})</Code>", said)
    if status is None:
        return "the object store does not answer; check AWS_ENDPOINT_URL, AWS_ALLOW_HTTP and the network"
    known = f"{status[1]} {code[1]}" if code else status[1]
    if status[1] in ("401", "403"):
        return f"the object store refuses ({known}); check AWS_ACCESS_KEY_ID and what its owner may do"
    return f"the object store answers {known}"
