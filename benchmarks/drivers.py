"""Which processes drive a sweep?"""

from pathlib import Path

__all__ = ["is_driving"]


def is_driving(pid: int) -> bool:
    """Whether a driver's process has a sweep: its output goes to that one's log from then on."""
    try:
        return "driver" in Path(f"/proc/{pid}/fd/1").readlink().name
    except OSError:  # it has just ended
        return False
