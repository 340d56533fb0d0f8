"""A process takes memory that it has freed without asking the system again, in any of its threads."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from care_sweep.memory import KEEPING_FREED_MEMORY

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is what is told")

_NUM_BYTES = 100_000_000
_PAGES = _NUM_BYTES // os.sysconf("SC_PAGE_SIZE")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_FAULTS_OF_FURTHER_PIECES = f"""
import resource, sys, threading
from care_sweep.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * {_NUM_BYTES}
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def look():
    faults()
    print(max(faults() for _ in range(3)))

if "keep" in sys.argv:
    keep_freed_memory()
if "thread" in sys.argv:
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
else:
    look()
"""


def _faults(*how: str, environment: Mapping[str, str] | None = None) -> int:
    """Page faults of taking a large piece of memory again, in a process of its own."""
    command = [sys.executable, "-c", _FAULTS_OF_FURTHER_PIECES, *how]
    environment = {**os.environ, **(environment or {})}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.parametrize("where", ["main", "thread"])
def test_freed_memory_is_taken_again(where: str) -> None:
    comes_in_pages = not (_HUGE_PAGES.exists() and "[always]" in _HUGE_PAGES.read_text())
    if comes_in_pages and not KEEPING_FREED_MEMORY.keys() & os.environ.keys():
        assert _faults(where) >= _PAGES, "the system gives it page by page, or this test shows nothing"
    assert _faults(where, "keep") < _PAGES / 10
    assert _faults(where, environment=KEEPING_FREED_MEMORY) < _PAGES / 10
