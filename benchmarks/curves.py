"""What has each full-length run measured, epoch by epoch? Curves as JSON lines, the first line says of what.

A point is where a configuration lies in its search space, each parameter between 0 and 1, logarithmic ones
by their logarithm.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from care_sweep.documents import parse
from care_sweep.spec import FloatParameter, Scalar, SearchSpace, TrialState
from care_sweep.storage.durable import write_durably

__all__ = ["Curve", "Recording", "point", "read", "values_at", "write"]


@dataclass(frozen=True)
class Curve:
    """One configuration trained until its end.

    Attributes:
        number: its place in the recording.
        state: COMPLETE, INFEASIBLE (collapsed) or FAILED (diverged).
        metrics: by name, the value after each epoch.
        seconds: of each epoch with its evaluation; of a failed run also of the epoch that failed.
    """

    number: int
    parameters: dict[str, Scalar]
    state: TrialState
    metrics: dict[str, list[float]]
    seconds: list[float]


@dataclass(frozen=True)
class Recording:
    """Curves of one space; `head` is what the first line says of them."""

    head: dict[str, Any]
    curves: tuple[Curve, ...]

    @property
    def space(self) -> SearchSpace:
        return parse(SearchSpace, self.head["space"])


def read(file: Path) -> Recording:
    """The recording in a file."""
    head, *documents = [json.loads(line) for line in file.read_text().splitlines()]
    curves = [Curve(**{**document, "state": TrialState(document["state"])}) for document in documents]
    return Recording(head, tuple(curves))


def write(file: Path, recording: Recording) -> None:
    """The whole file or nothing, so that a recording can be stopped at any time."""
    lines = [recording.head, *map(asdict, recording.curves)]
    write_durably(file, "".join(json.dumps(line) + "\n" for line in lines).encode())


def values_at(space: SearchSpace, where: Sequence[float]) -> dict[str, Scalar]:
    """The configuration at a point."""
    found: dict[str, Scalar] = {}
    for (name, parameter), share in zip(_ranges(space).items(), where, strict=True):
        low, high = _ends(parameter)
        value = low + share * (high - low)
        value = math.exp(value) if parameter.log else value
        found[name] = min(max(value, parameter.low), parameter.high)
    return found


def point(space: SearchSpace, values: Mapping[str, Scalar]) -> tuple[float, ...]:
    """Where a configuration lies."""
    found = []
    for name, parameter in _ranges(space).items():
        low, high = _ends(parameter)
        value = float(values[name])
        found.append(((math.log(value) if parameter.log else value) - low) / (high - low))
    return tuple(found)


def _ranges(space: SearchSpace) -> dict[str, FloatParameter]:
    ranges = {
        name: parameter
        for name, parameter in space.parameters.items()
        if isinstance(parameter, FloatParameter)
    }
    if len(ranges) != len(space.parameters):
        raise ValueError(f"space {space.name!r} has parameters other than float: they have no distance")
    return ranges


def _ends(parameter: FloatParameter) -> tuple[float, float]:
    if parameter.log:
        return math.log(parameter.low), math.log(parameter.high)
    return parameter.low, parameter.high
