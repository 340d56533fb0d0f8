"""What has a sweep of the cluster just now? Looked at once a second, and told to its conductor."""

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ray.exceptions import RayError

from care_sweep.run.conductor import Conductor
from care_sweep.run.nodes import Nodes
from care_sweep.run.placing import capacity_of
from care_sweep.run.sharing import divide

__all__ = ["Allotment"]

_LOG = logging.getLogger("care_sweep.driver")

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
        self._is_ready: bool | None = None
        self._is_known = False

    def await_node(self) -> Sequence[Mapping[str, float]]:
        """The resources of each node, once one has the CPUs of a trial; none where the sweep is over.

        Before, nobody knows whether there are GPUs: an autoscaler may have taken all workers away.
        """
        conductor = self._conductor
        while True:
            conductor.look()
            conductor.demands()  # a quota may be spent
            if conductor.is_finished or conductor.is_out_of_budget:
                return []
            nodes = self._usable()
            if nodes is not None:
                resources = list(nodes.values())
                if capacity_of(resources, {**self._wanted(), "GPU": 0.0}):
                    return resources
                self._tell_ready(True)  # it wants one
                conductor.explain(self._why_nothing_runs(resources))
            time.sleep(_LOOK_SECONDS)

    def wait(self) -> bool:
        """Wait until a trial may run. False once none will any more."""
        while True:
            self._conductor.look()
            self.look()
            if self._conductor.is_finished:
                return False
            may_run = self._is_known and self._conductor.room.share.num_trials
            if may_run or self._conductor.is_out_of_budget:
                return True
            time.sleep(_LOOK_SECONDS)

    def look(self) -> None:
        """Have the conductor know its share, and whether this process has grown too large.

        While database or head are away all stays as it is.
        """
        if time.monotonic() - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()
        conductor = self._conductor
        self._tell_ready(not conductor.is_held_up)
        nodes, demands = self._usable(), conductor.demands()
        if nodes is None:
            return
        if demands is not None:
            self._is_known = True
            conductor.room.share = divide(nodes, demands).get(conductor.sweep_id, conductor.room.share)
            conductor.explain(self._why_nothing_runs(list(nodes.values())))
        if conductor.num_ended >= _FEW_TRIALS and _memory_bytes() > _MOST_MEMORY_BYTES:
            conductor.hand_over()

    def _usable(self) -> Mapping[str, Mapping[str, float]] | None:
        """The resources of each node; None while the cluster's head is away."""
        try:
            return self._nodes.usable()
        except RayError as error:
            _LOG.warning("the nodes of the cluster are not known: %s", error)
            return None

    def _tell_ready(self, is_ready: bool) -> None:
        if is_ready is not self._is_ready:
            self._conductor.ready(is_ready)
            self._is_ready = is_ready

    def _why_nothing_runs(self, nodes: Sequence[Mapping[str, float]]) -> str | None:
        conductor, wanted = self._conductor, self._wanted()
        if conductor.num_running:
            return None
        if not capacity_of(nodes, wanted):
            asked = ", ".join(f"{amount:g} {name}" for name, amount in wanted.items() if amount)
            return f"waiting: no node of the cluster has the {asked} that a trial needs"
        return (
            None if conductor.room.share.num_trials else "waiting for its turn: other sweeps have the cluster"
        )

    def _wanted(self) -> Mapping[str, float]:
        """Of each resource by a trial, as far as that is known."""
        resources, chosen = self._conductor.spec.resources, self._conductor.gpus_per_trial
        gpus = chosen if resources.gpus_per_trial == "auto" else resources.gpus_per_trial
        return {"CPU": resources.cpus_per_trial, "GPU": gpus}


def _memory_bytes() -> int:
    """Of this process, as Linux tells it."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
