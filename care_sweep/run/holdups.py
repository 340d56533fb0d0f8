"""Why does a sweep not get on, and from when is it tried again? What its users read as its message."""

import time
from collections.abc import Callable

from care_sweep.store import Lease

__all__ = ["HoldUps"]

_FIRST_PAUSE_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 60.0


class HoldUps:
    """What one sweep waits for: room in the cluster, or that something is mended. The message is stored.

    Args:
        said: what the sweep says so far.
    """

    def __init__(self, lease: Lease, said: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._lease, self._said, self._clock = lease, said, clock
        self._waits_for: str | None = None
        self._trouble: str | None = None
        self._pause_seconds, self._paused_until = 0.0, clock()

    @property
    def is_paused(self) -> bool:
        """Nothing is tried at present."""
        return self._clock() < self._paused_until

    def waits(self, message: str | None) -> None:
        """Nothing can start, and why; with None it can."""
        self._waits_for = message
        self._tell()

    def trouble(self, message: str) -> None:
        """Something is to be mended: nothing is tried for a while, longer each time."""
        self._trouble = message
        self._tell()
        if self.is_paused:  # another trial met the same
            return
        doubled = 2 * self._pause_seconds
        self._pause_seconds = min(max(doubled, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
        self._paused_until = self._clock() + self._pause_seconds

    def gets_on(self) -> None:
        """A trial has measured something, so that nothing is wrong any more."""
        self._pause_seconds, self._trouble = 0.0, None
        self._tell()

    def _tell(self) -> None:
        said = self._trouble or self._waits_for
        if said != self._said:
            self._lease.explain(said)
            self._said = said
