"""Has a sweep lost its holder? What a runner sees of leases that are renewed, or are not."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto

from care_sweep.store import HoldRecord

__all__ = ["LEASE_SECONDS", "Doubt", "Holders"]

LEASE_SECONDS = 15.0
"""A lease has run out once its counter stood still this long on the observer's own monotonic clock."""

_BLIND_SECONDS = 5.0
"""Who saw nothing for so long, since the database was away or it slept itself, observes anew."""

_LATE_SECONDS = LEASE_SECONDS / 2
"""Who renews every 2 s and has not for so long may be gone."""

_CANCELLED_SECONDS = 5.0
"""A holder that does not end a cancelled sweep in this time is not waited for any longer."""


class Doubt(Enum):
    """Has a sweep lost its holder?"""

    NONE = auto()
    PERHAPS = auto()
    GONE = auto()


@dataclass
class _Observation:
    """A counter that was seen to stand, from when on, and when last."""

    counter: int
    since: float
    seen_at: float
    has_moved: bool


class Holders:
    """Watches the counters of leases, each look by `doubt` or `has_run_out`. Used from one thread.

    `ping` returns if the database can be written: where nobody can write, nobody can renew.
    """

    def __init__(self, ping: Callable[[], None], monotonic: Callable[[], float] = time.monotonic) -> None:
        self._ping, self._monotonic = ping, monotonic
        self._observed: dict[str, _Observation] = {}

    def doubt(self, sweep: HoldRecord) -> Doubt:
        """Whether a sweep that others held has lost its holder."""
        if sweep.lease_owner is None:
            return Doubt.GONE
        patience = _CANCELLED_SECONDS if sweep.is_cancelled else LEASE_SECONDS
        if self.has_run_out(sweep, patience):
            return Doubt.GONE
        seen = self._observed[sweep.id]
        is_late = self._monotonic() - seen.since > _LATE_SECONDS
        return Doubt.PERHAPS if is_late or not seen.has_moved else Doubt.NONE

    def has_run_out(self, sweep: HoldRecord, seconds: float) -> bool:
        """Whether the sweep's counter was seen to stand still for so long, though it could have moved."""
        seen = self._observed.get(sweep.id)
        stood = seen is not None and seen.counter == sweep.lease_counter
        if seen is not None and stood and self._monotonic() - seen.since > seconds / 3:
            self._ping()
        now = self._monotonic()
        if seen is None or not stood or now - seen.seen_at > _BLIND_SECONDS:
            has_moved = seen is not None and not stood
            self._observed[sweep.id] = _Observation(sweep.lease_counter, now, now, has_moved)
            return False
        seen.seen_at = now
        return now - seen.since >= seconds

    def forget(self, sweep_id: str) -> None:
        """Observe the sweep anew: it is another's from now on, or one's own."""
        self._observed.pop(sweep_id, None)

    def keep_only(self, sweep_ids: Iterable[str]) -> None:
        """Forget all sweeps but these."""
        kept = set(sweep_ids)
        self._observed = {sweep_id: seen for sweep_id, seen in self._observed.items() if sweep_id in kept}
