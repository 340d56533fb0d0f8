"""What has a sweep spent, and is that all it may? Seconds in which trials ran, GPU seconds, a quota."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from care_sweep.spec import Budget

__all__ = ["SPENT", "Spending"]

_BUDGET_SPENT = "budget spent"
_QUOTA_SPENT = "quota spent"
SPENT = (_BUDGET_SPENT, _QUOTA_SPENT)
"""Why trials and sweeps end that may have no more."""


@dataclass
class Spending:
    """What one sweep has spent.

    Attributes:
        seconds_before, gpu_seconds: as stored, and GPU seconds that came since.
        is_quota_spent: the token that submitted it may have no more GPU hours.
        seconds: with this driver. Neither waiting nor pauses count.
    """

    seconds_before: float
    gpu_seconds: float
    clock: Callable[[], float] = time.monotonic
    is_quota_spent: bool = False
    _seconds: float = 0.0
    _ticked_at: float = field(init=False)
    _is_running: bool = False

    def __post_init__(self) -> None:
        self._ticked_at = self.clock()

    @property
    def seconds(self) -> float:
        return self._seconds + (self.clock() - self._ticked_at if self._is_running else 0.0)

    def tick(self, *, is_running: bool) -> None:
        """Hear whether any trial runs from now on."""
        self._seconds, self._ticked_at, self._is_running = self.seconds, self.clock(), is_running

    def why_no_more(self, budget: Budget | None) -> str | None:
        """One of SPENT, or None where the sweep may have more."""
        if self.is_quota_spent:
            return _QUOTA_SPENT
        if budget is None:
            return None
        seconds = self.seconds_before + self.seconds
        is_spent = (budget.max_seconds is not None and seconds >= budget.max_seconds) or (
            budget.max_gpu_hours is not None and self.gpu_seconds >= 3600 * budget.max_gpu_hours
        )
        return _BUDGET_SPENT if is_spent else None
