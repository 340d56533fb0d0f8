"""How does a file appear whole or not at all, and stay?"""

import os
from pathlib import Path

__all__ = ["write_durably"]


def write_durably(path: Path, content: bytes) -> None:
    """Write under a temporary name, flush to disk, rename, flush the folder.

    Whatever ends the process meanwhile, `path` holds its old content or all of the new; an exception leaves
    no temporary file behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
