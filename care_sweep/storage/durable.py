"""How does a file appear whole or not at all, and stay?"""

import errno
import os
import secrets
from pathlib import Path

__all__ = ["TEMPORARY_FILES", "flush_folder", "make_folder_durably", "write_durably"]

TEMPORARY_FILES = ".*.part"
"""The pattern of the names under which files are written before they take their own."""


def write_durably(path: Path, content: bytes, *, overwrite: bool = True) -> None:
    """Write under a temporary name, flush to disk, rename, flush the folder.

    Whatever ends the process meanwhile, `path` holds its old content or all of the new; an exception leaves
    no temporary file behind.

    Raises:
        FileExistsError: something is there already, and it is not to be overwritten.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            temporary.replace(path)
        else:
            path.hardlink_to(temporary)  # unlike a rename, it fails where the name is taken
    finally:
        temporary.unlink(missing_ok=True)
    flush_folder(path.parent)


def make_folder_durably(path: Path) -> None:
    """Make a folder and those above it; a crash of the machine does not take them away again.

    Raises:
        NotADirectoryError: a file is in the way.
    """
    if path.is_dir():
        return
    make_folder_durably(path.parent)
    try:
        path.mkdir(exist_ok=True)  # somebody else may have made it by now
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Have a crash of the machine not take away the names that were made in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
