"""How often has a test split been read? A line of a log for each time, written before it is."""

import fcntl
import getpass
import json
import os
from datetime import UTC, datetime
from pathlib import Path

from care_sweep.storage.durable import flush_folder, make_folder_durably

__all__ = ["count_read"]


def count_read(log: Path, *, fingerprint: str, dataset: str, **what: str) -> int:
    """Note that a dataset's test split is about to be read; how many times that makes, this one included.

    A reading counts where the images are the same, by their fingerprint, or the dataset's name is: to resize
    a set, or to change one image of it, begins no new count.

    The line is on the disk before this returns, so that a reading which is killed counts too. It says who
    reads and when, besides `what`, and which time it is. Several processes may count at once.

    Raises:
        OSError: nothing can be written there.
    """
    make_folder_durably(log.parent)
    names = {"fingerprint": fingerprint, "dataset": dataset}
    of_these = [json.dumps({key: value})[1:-1] for key, value in names.items()]
    with log.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        before = file.read()
        number = 1 + sum(any(one in line for one in of_these) for line in before.splitlines())
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = {**names, "number": number, "read_at": now, "user": _user(), **what}
        # a line that a crash cut short is ended first
        file.write("\n" * (before[-1:] not in ("", "\n")) + json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
    flush_folder(log.parent)
    return number


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return str(os.getuid())
