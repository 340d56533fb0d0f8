"""Where do processes work that may be killed? In folders that the next one deletes."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

__all__ = ["scratch_folder"]

_LOCK_NAME = ".lock"


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A folder for the length of a `with`. Those of killed processes, whose lock nobody holds, go first."""
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / "lock").open("a") as making:
        fcntl.flock(making, fcntl.LOCK_EX)
        for left in parent.glob(f"{prefix}*"):
            with suppress(OSError), (left / _LOCK_NAME).open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
        scratch = Path(mkdtemp(prefix=prefix, dir=parent))
        held = (scratch / _LOCK_NAME).open("a")
        fcntl.flock(held, fcntl.LOCK_EX)
    try:
        yield scratch
    finally:
        held.close()
        shutil.rmtree(scratch, ignore_errors=True)
