"""What has a sweep of the cluster just now? Looked at once a second, and told to its conductor."""

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

from care_sweep.run.conductor import Conductor
from care_sweep.run.nodes import Nodes
from care_sweep.run.sharing import capacity_of, divide

__all__ = ["Allotment"]

_LOOK_SECONDS = 1.0
_MOST_MEMORY_BYTES = 360 * 2**20
"""Tune remembers every trial: a driver that has grown so large hands over to a fresh one."""

_FEW_TRIALS = 100  # that a driver ends before it hands over, however large it was from the start


class Allotment:
    """What one sweep may run, and whether its driver has grown too large to go on."""

    def __init__(self, conductor: Conductor, nodes: Nodes) -> None:
        self._conductor = conductor
        self._nodes = nodes
        self._looked_at = -math.inf
        self._said: str | None = None

    def wait(self) -> bool:
        """Wait until a trial may run. False once none will any more."""
        while not self._conductor.is_finished:
            self.look()
            if self._conductor.share.num_trials or self._conductor.is_out_of_budget:
                return True
            time.sleep(_LOOK_SECONDS)
            self._conductor.look()
        return False

    def look(self) -> None:
        """Have the conductor know its share, and whether this process has grown too large."""
        if time.monotonic() - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()
        conductor, nodes = self._conductor, self._nodes.usable()
        demands = conductor.demands()
        if demands is not None:
            wanted = {"CPU": conductor.spec.resources.cpus_per_trial, "GPU": conductor.gpus_per_trial}
            conductor.share = divide(nodes, demands).get(conductor.sweep_id, conductor.share)
            self._explain(None if capacity_of(nodes, wanted) else wanted)
        if conductor.num_ended >= _FEW_TRIALS and _memory_bytes() > _MOST_MEMORY_BYTES:
            conductor.hand_over()

    def _explain(self, missing: Mapping[str, float] | None) -> None:
        """Let the sweep say why nothing runs, when that changes."""
        said = None
        if missing:
            wanted = ", ".join(f"{amount:g} {name}" for name, amount in missing.items() if amount)
            said = f"waiting: no node of the cluster has the {wanted} that a trial needs"
        elif not self._conductor.share.num_trials:
            said = "waiting for its turn: other sweeps have the cluster"
        if said != self._said:
            self._said = said
            self._conductor.explain(said)


def _memory_bytes() -> int:
    """Of this process, as Linux tells it."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
