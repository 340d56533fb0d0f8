"""Which checkpoints of a sweep are worth their place? The best, and what they are compared with."""

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["CompleteTrial", "surplus"]


@dataclass(frozen=True)
class CompleteTrial:
    """A COMPLETE trial whose checkpoint is stored under a key."""

    number: int
    value: float
    is_baseline: bool
    key: str


def surplus(trials: Iterable[CompleteTrial], num_kept: int | None) -> list[CompleteTrial]:
    """The trials whose checkpoint may go: the searched ones after the `num_kept` best; None keeps all.

    The order is `analysis.best`'s: equal values by number. A trial that is left out stays out, whatever
    completes later. The best of the sweep is never among them, nor is a baseline.
    """
    if num_kept is None:
        return []
    assert num_kept >= 1, "the best is never deleted"
    searched = [trial for trial in trials if not trial.is_baseline]
    return sorted(searched, key=lambda trial: (-trial.value, trial.number))[num_kept:]
