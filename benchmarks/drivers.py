"""Which processes drive a sweep?"""

import re
import subprocess
from pathlib import Path

__all__ = ["driving_children", "is_driving"]

_LOG = re.compile(r"(^|-)driver(-\d+)?\.log$")


def is_driving(pid: int) -> bool:
    """Whether a driver's process has a sweep: its output goes to that one's log from then on."""
    try:
        return _LOG.search(Path(f"/proc/{pid}/fd/1").readlink().name) is not None
    except OSError:  # it has just ended
        return False


def driving_children(runner: int, command: str) -> list[int]:
    """The processes that a runner has started with `command` in their command line and that drive a sweep."""
    search = ["pgrep", "-P", str(runner), "-f", command]
    found = subprocess.run(search, capture_output=True, text=True, check=False).stdout.split()
    return [pid for pid in map(int, found) if is_driving(pid)]
