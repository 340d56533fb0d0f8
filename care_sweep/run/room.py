"""How many trials of a sweep may run at once, and which of them gives way? Its share, and where they run."""

import math
import time
from collections.abc import Callable, Mapping

from care_sweep.run.sharing import UNSHARED, Share
from care_sweep.spec import Spot

__all__ = ["Room"]

_ROOM_SECONDS = 5.0
"""Room that was just made for a larger trial could go to one that begins: Tune keeps a worker for it, and Ray
looks only once a second whether there is a place for what waits."""


class Room:
    """What one sweep has of the cluster.

    Args:
        places: tells how many of its trials run where, as far as that is known.
    """

    def __init__(
        self, places: Callable[[], Mapping[Spot, int]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._places, self._clock = places, clock
        self._share, self._made_at = UNSHARED, -math.inf

    @property
    def share(self) -> Share:
        """Of the cluster; trials that run beyond it give way as they report."""
        return self._share

    @share.setter
    def share(self, share: Share) -> None:
        self._share = share
        self.look()  # trials may leave before the next look

    def look(self) -> None:
        """Note whether some are to leave their places for a larger one."""
        if self._share.num_misplaced(self._places()):
            self._made_at = self._clock()

    def most_at_once(self, limit: int | None) -> int:
        """Trials, as far as the cluster and the sweep's own limit go.

        None begins while some make room for a larger one, or have just done so.
        """
        if self._share.num_misplaced(self._places()) or self._clock() - self._made_at < _ROOM_SECONDS:
            return 0
        return self._share.num_trials if limit is None else min(limit, self._share.num_trials)

    def gives_way(self, spot: Spot | None, num_running: int) -> bool:
        """Whether a trial that reports from this place shall wait, of so many that run."""
        return self._share.gives_way(spot, num_running, self._places())
