"""How does a folder keep objects? As files of their own names, each written beside its place and renamed."""

import errno
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from care_sweep.errors import Conflict, NotFound, StorageError
from care_sweep.storage.contract import CHUNK_BYTES, StoredObject, check_key, holds
from care_sweep.storage.durable import TEMPORARY_FILES, make_folder_durably, write_durably

__all__ = ["Folder"]

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # not through a link, not into a pipe


class Folder:
    """The storage below a folder of this machine or one it mounts."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def uri(self) -> str:
        return str(self._root)

    def check(self) -> None:
        try:
            is_folder = stat.S_ISDIR(self._root.stat().st_mode)
        except FileNotFoundError:
            return  # it is made with its first object
        except OSError as error:
            raise StorageError(f"{self.uri}: {error.strerror or error}") from error
        if not is_folder:
            raise StorageError(f"{self.uri} is no folder; move it aside")

    def put(self, key: str, content: bytes, *, overwrite: bool = False) -> StoredObject:
        path = self.local_path(key)
        try:
            try:
                self._write(key, path, content, overwrite=overwrite)
            except NotFound:  # its folder was empty, and deleted just now
                self._write(key, path, content, overwrite=overwrite)
        except FileExistsError:
            if not holds(self, key, content):
                raise Conflict(f"{self.uri}/{key} is there already with other content") from None
        except NotFound:
            raise StorageError(f"{self.uri}/{key}: a folder or file is in the way; move it aside") from None
        stored = self.head(key)
        if stored.size_bytes != len(content):
            raise StorageError(f"{self.uri}/{key} has {stored.size_bytes} bytes after {len(content)} written")
        return stored

    def _write(self, key: str, path: Path, content: bytes, *, overwrite: bool) -> None:
        with self._told(key):
            make_folder_durably(path.parent)
            write_durably(path, content, overwrite=overwrite)

    def head(self, key: str) -> StoredObject:
        with self._told(key):
            return _stored(key, self.local_path(key).lstat())

    def read(
        self, key: str, start: int = 0, stop: int | None = None, *, version: str | None = None
    ) -> Iterator[bytes]:
        path = self.local_path(key)
        with self._told(key), os.fdopen(os.open(path, _READ), "rb") as file:
            found = _stored(key, os.fstat(file.fileno()))
            if version not in (None, found.version):
                raise StorageError(f"{self.uri}/{key} was replaced while it was read; ask again")
            stop = found.size_bytes if stop is None else stop
            file.seek(start)
            while start < stop:
                chunk = file.read(min(CHUNK_BYTES, stop - start))
                if not chunk:
                    raise StorageError(f"{self.uri}/{key} became shorter while it was read; ask again")
                start += len(chunk)
                yield chunk

    def list(self, prefix: str, *, strict: bool = False) -> Iterator[StoredObject]:
        for path, key in self._files(prefix):
            try:
                yield _stored(check_key(key), path.lstat())
            except (FileNotFoundError, NotFound):
                continue  # deleted meanwhile, or a link
            except ValueError:
                if strict:
                    raise
                continue  # none of ours

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            path = self.local_path(key)
            with self._told(key):
                path.unlink(missing_ok=True)
            with suppress(OSError):  # as soon as one is not empty
                for folder in path.parents[: -len(self._root.parents) - 1]:
                    folder.rmdir()

    def sweep_temporary_files(self, older_than_seconds: float) -> int:
        before, num_swept = time.time() - older_than_seconds, 0
        with self._told(""):
            for path in self._root.rglob(TEMPORARY_FILES):
                try:
                    if path.lstat().st_mtime < before:
                        path.unlink()
                        num_swept += 1
                except FileNotFoundError:
                    continue  # its writer has just renamed it
        return num_swept

    def local_path(self, key: str) -> Path:
        path = self._root / check_key(key)
        with self._told(key):
            if not path.parent.resolve().is_relative_to(self._root.resolve()):
                raise NotFound(f"{key} does not lie below {self.uri}: a link leads out of it")
        return path

    def _files(self, prefix: str) -> Iterator[tuple[Path, str]]:
        top = self.local_path(prefix)
        for folder, _, names in os.walk(top) if not top.is_symlink() else ():  # follows no link
            for name in sorted(names):
                path = Path(folder, name)
                yield path, path.relative_to(self._root).as_posix()

    @contextmanager
    def _told(self, key: str) -> Iterator[None]:
        """Say an operating system's error in the words of the contract."""
        try:
            yield
        except FileExistsError:
            raise
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFound(f"there is no {self.uri}/{key}") from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise NotFound(f"{key} is a link, not a file") from None
            raise StorageError(f"{self.uri}/{key}: {error.strerror or error}") from error


def _stored(key: str, status: os.stat_result) -> StoredObject:
    if not stat.S_ISREG(status.st_mode):
        raise NotFound(f"{key} is no file")
    version = f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}"
    return StoredObject(key, status.st_size, version, status.st_mtime)
