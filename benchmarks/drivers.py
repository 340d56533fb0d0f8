"""Which processes drive a sweep?"""

import re
from pathlib import Path

__all__ = ["is_driving"]

_LOG = re.compile(r"(^|-)driver(-\d+)?\.log$")


def is_driving(pid: int) -> bool:
    """Whether a driver's process has a sweep: its output goes to that one's log from then on."""
    try:
        return _LOG.search(Path(f"/proc/{pid}/fd/1").readlink().name) is not None
    except OSError:  # it has just ended
        return False
