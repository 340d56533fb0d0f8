"""Puts one object in child processes of which the n-th dies at the n-th line, until one survives.

Prints for each overwriting and creating: how many died, and what each left under the key and beside it.
"""

import json
import os
import sys
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

from care_sweep.storage import contract, durable, folder

DIED = 77
KEY = "a/b/c"
_WATCHED = {durable.__file__, folder.__file__, contract.__file__}


def _die_at(line: int) -> Any:
    seen = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal seen
        if frame.f_code.co_filename not in _WATCHED:
            return None
        seen += event == "line"
        if seen > line:
            os._exit(DIED)
        return trace

    return trace


def _survives(root: Path, line: int, content: bytes, *, overwrite: bool) -> bool:
    child = os.fork()
    if child == 0:
        sys.settrace(_die_at(line))
        folder.Folder(root).put(KEY, content, overwrite=overwrite)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, DIED), status
    return status == 0


def _report(root: Path, *, overwrite: bool) -> dict[str, object]:
    old, new = (b"old" if overwrite else None), b"new" * 1000
    left: dict[str, int] = {}
    for line in count():
        path = root / str(line) / KEY
        if old is not None:
            folder.Folder(root / str(line)).put(KEY, old)
        survived = _survives(root / str(line), line, new, overwrite=overwrite)
        found = path.read_bytes() if path.exists() else None
        what = "new" if found == new else "old" if found == old else "damaged"
        left[what] = left.get(what, 0) + 1
        debris = folder.Folder(root / str(line)).sweep_temporary_files(-1)
        left["debris"] = left.get("debris", 0) + debris
        if survived:
            beside = [file.name for file in path.parent.iterdir()]
            return {"num_deaths": line, "left": left, "last": what, "beside": beside}
    raise AssertionError


if __name__ == "__main__":
    where = Path(sys.argv[1])
    reports = [_report(where / str(overwrite), overwrite=overwrite) for overwrite in (True, False)]
    print(json.dumps(reports))
