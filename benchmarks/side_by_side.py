"""How are several ways of doing one thing timed side by side, so that a busy machine is unfair to none?

They take turns, A B A B, so that what else runs on the machine falls on all alike; medians and quartiles are
over the turns. One that fails, fails alone.
"""

import gc
import math
import os
import platform
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

__all__ = ["Contender", "Outcome", "Race", "Turn", "machine", "quartiles", "spread", "synchronise", "table"]

_T = TypeVar("_T")
_QUARTILES = ("lower_quartile", "median", "upper_quartile")


@dataclass(frozen=True)
class Turn:
    """What was done in which time.

    Attributes:
        amount: images, views, operations or bytes.
        part_seconds: what a part of interest took of them; 0 where there is none.
    """

    amount: float
    seconds: float
    part_seconds: float = 0.0


class Contender(Protocol):
    """One way, warm and ready: its first turn counts as much as its last."""

    def turn(self) -> Turn: ...


@dataclass
class Outcome:
    """What became of one contender.

    Attributes:
        setup_seconds: from its building until it was warm.
        error: why it did not go on, if it failed.
    """

    setup_seconds: float = 0.0
    turns: list[Turn] = field(default_factory=list)
    error: str | None = None

    @property
    def rates(self) -> list[float]:
        """Amount a second, a turn each."""
        return [turn.amount / turn.seconds for turn in self.turns]

    def document(self) -> dict[str, Any]:
        return {
            "rate": None if not self.turns else dict(zip(_QUARTILES, quartiles(self.rates), strict=True)),
            "turns": [asdict(turn) for turn in self.turns],
            "setup_seconds": self.setup_seconds,
            "error": self.error,
        }


class Race:
    """The contenders and what has become of them.

    Args:
        builders: makes each contender, warm and ready.
        seconds: of set-up and turns, after which a contender takes no further turn; each takes one at least.

    Attributes:
        running: the contenders that have not failed.
    """

    def __init__(self, builders: Mapping[str, Callable[[], Contender]], seconds: float) -> None:
        self.outcomes = {name: Outcome() for name in builders}
        self.running: dict[str, Contender] = {}
        self._seconds = seconds
        for name, build in builders.items():
            started = time.perf_counter()
            contender = self.attempt(name, build)
            self.outcomes[name].setup_seconds = time.perf_counter() - started
            if contender is not None:
                self.running[name] = contender

    def round(self) -> None:
        """A turn for each that has time left."""
        for name, contender in list(self.running.items()):
            if self._has_time(name) and (turn := self.attempt(name, contender.turn)) is not None:
                self.outcomes[name].turns.append(turn)

    def attempt(self, name: str, action: Callable[[], _T]) -> _T | None:
        """What the action answers; None where it failed, and the contender with it."""
        try:
            return action()
        except Exception as error:  # noqa: BLE001  (whatever it is, the others go on)
            trace = traceback.format_exc(limit=-3)
            self.outcomes[name].error = f"{type(error).__name__}: {error}\n{trace}"
        self.running.pop(name, None)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def _has_time(self, name: str) -> bool:
        outcome = self.outcomes[name]
        used = outcome.setup_seconds + sum(turn.seconds for turn in outcome.turns)
        return not outcome.turns or used < self._seconds


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of one value or more, interpolated.

    Values may be infinite, and then so is what lies between one of these and a finite one.
    """
    ordered = sorted(values)
    return _quantile(ordered, 0.25), _quantile(ordered, 0.5), _quantile(ordered, 0.75)


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    part = place % 1
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low if low == high else (1 - part) * low + part * high  # 0 * infinity is no number


def spread(rate: Mapping[str, float] | None) -> str:
    """The median and, in brackets, the quartiles; a dash where there was no turn."""
    if rate is None:
        return "-"
    low, middle, high = (f"{rate[name]:.4g}" for name in _QUARTILES)
    return f"{middle} ({low} to {high})"


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> dict[str, Any]:
    """Where a figure was seen.

    `float32_convolutions` are cuDNN's of all but trials, which are IEEE's whatever it says.
    """
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "float32_convolutions": torch.backends.cudnn.conv.fp32_precision,
        "commit": _commit(),
    }


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str:
    """What the working tree stands at, `unknown` where git or its history is not there."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except OSError:
        return "unknown"
    return found.stdout.strip() or "unknown"


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Markdown; the columns are the first row's."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([row[column] for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
