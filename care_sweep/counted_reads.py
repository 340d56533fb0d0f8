"""How often has a test split been read? A line of a log for each time, written before it is."""

import fcntl
import getpass
import json
import os
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["count_read"]


def count_read(log: Path, fingerprint: str, **what: str) -> int:
    """Note that a dataset's test split is about to be read; how many times that makes, this one included.

    The line is on the disk before this returns, so that a reading which is killed counts too. It says who
    reads and when, besides `what`, and which time it is. Several processes may count at once.

    Raises:
        OSError: nothing can be written there.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        number = 1 + file.read().count(f'"fingerprint": "{fingerprint}"')
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = {"fingerprint": fingerprint, "number": number, "read_at": now, "user": _user(), **what}
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return number


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return str(os.getuid())
