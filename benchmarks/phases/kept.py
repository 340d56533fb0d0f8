"""How is a piece of a long run done once? Its findings are a file; one that broke a promise is done again."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["kept", "load_of"]

_SAMPLE_SECONDS = 5.0


def kept(result: Path, do: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    """What `do` finds in a home of its own, and how busy the machine was meanwhile.

    Its list `broken` tells what promises did not hold. What broke in earlier tries stays in the file, so that
    a run that was repeated until it passed can be told from one that passed.
    """
    earlier: dict[str, Any] = json.loads(result.read_text()) if result.exists() else {}
    if earlier and not earlier["broken"]:
        return earlier
    home = result.with_suffix("") / str(time.time_ns())
    home.mkdir(parents=True)
    began = time.monotonic()
    with _LoadWatch() as watch:
        found = dict(do(home.absolute()))
    found |= {"seconds": round(time.monotonic() - began), "load_average": watch.seen, "commit": _commit()}
    found["broke_before"] = earlier.get("broke_before", []) + earlier.get("broken", [])
    partial = result.with_suffix(".part")
    partial.write_text(json.dumps(found, indent=2))
    partial.replace(result)
    print(f"{result}: {found['broken'] or 'every promise kept'}", file=sys.stderr, flush=True)
    return found


def load_of(findings: Sequence[Mapping[str, Any]]) -> list[float]:
    """Least, mean and greatest load average of several findings, the mean weighed by their seconds."""
    loads, seconds = [one["load_average"] for one in findings], [one["seconds"] + 1 for one in findings]
    mean = sum(load[1] * weight for load, weight in zip(loads, seconds, strict=True)) / sum(seconds)
    return [min(load[0] for load in loads), round(mean, 1), max(load[2] for load in loads)]


class _LoadWatch:
    """Least, mean and greatest load average of the last minute, for the length of a `with`."""

    def __enter__(self) -> "_LoadWatch":
        self.seen: list[float] = []
        self._samples: list[float] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        mean = sum(self._samples) / len(self._samples)
        self.seen = [round(value, 1) for value in (min(self._samples), mean, max(self._samples))]

    def _watch(self) -> None:
        while True:
            self._samples.append(os.getloadavg()[0])
            if self._done.wait(_SAMPLE_SECONDS):
                return


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return told or "unknown"
