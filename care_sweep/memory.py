"""How does a process that trains keep the memory that a step frees, since the next step takes it again?

glibc gives large pieces back to the system and takes them anew, page by page. A step of a ResNet-18 on a CPU
spends a quarter of its time on that in a thread, which is where Ray's workers train. Kept, memory stays at
its highest until the process ends. See docs/decisions/0017-memory.md.
"""

import ctypes
import sys

__all__ = ["KEEPING_FREED_MEMORY", "keep_freed_memory"]

KEEPING_FREED_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}
"""The environment of a process that keeps it from its start on. One arena for all threads: that of a single
thread holds no piece of 64 MB or more. No piece is mapped alone; a threshold for that as large as all pieces
is refused by older versions of glibc."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # mallopt(3)


def keep_freed_memory() -> None:
    """Have this process do so from now on, but for the arenas of threads that it has; only where it runs on
    glibc."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)):
        mallopt(option, value)
