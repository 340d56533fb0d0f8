"""How often may one ask? A token bucket for each key, in this process."""

import time
from collections import OrderedDict
from collections.abc import Callable

__all__ = ["RateLimiter"]

_MAX_KEYS = 10_000  # the one that has not asked for the longest is forgotten, and may ask as if it were new


class RateLimiter:
    """So many requests a second in the long run, `burst` at once. Used from one thread."""

    def __init__(
        self, per_second: float, *, burst: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second = per_second
        self._burst = burst
        self._monotonic = monotonic
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, and since when

    def delay(self, key: str) -> float:
        """Seconds until one more may be taken; 0 for now."""
        return max(0.0, (1 - self._left(key)) / self._per_second)

    def take(self, key: str) -> float:
        """Take one, if that may be now; else the seconds until then."""
        delay = self.delay(key)
        if delay == 0:
            self._buckets[key] = (self._left(key) - 1, self._monotonic())
            self._buckets.move_to_end(key)
            if len(self._buckets) > _MAX_KEYS:
                self._buckets.popitem(last=False)
        return delay

    def _left(self, key: str) -> float:
        left, since = self._buckets.get(key, (self._burst, 0.0))
        return min(self._burst, left + (self._monotonic() - since) * self._per_second)
