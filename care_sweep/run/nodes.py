"""Which nodes take new trials, and was one that has gone meant to go?

Ray's own word is not enough: a node that was drained and then ended has died "unexpectedly" like any other
(seen with Ray 2.60), so that what drains is remembered while it can be seen.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray._private.state import actors, state  # what drains is told nowhere else; Ray Train asks there too
from ray.core.generated.common_pb2 import NodeDeathInfo  # type: ignore[attr-defined]  # made at run time

__all__ = ["Nodes"]

_MEANT = (
    NodeDeathInfo.EXPECTED_TERMINATION,
    NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED,
    NodeDeathInfo.AUTOSCALER_DRAIN_IDLE,
)
_PATIENCE_SECONDS = 1.0
"""A node that is stopped ends its workers and says so itself; either may be heard of first."""

_POLL_SECONDS = 0.1


class Nodes:
    """The nodes of the connected cluster, as one driver has seen them."""

    def __init__(self) -> None:
        self._drained: set[str] = set()

    def usable(self) -> Mapping[str, Mapping[str, float]]:
        """The resources of each node that lives and is not being drained, by its id."""
        return {node["NodeID"]: node["Resources"] for node in self.staying()}

    def staying(self) -> Sequence[Mapping[str, Any]]:
        """These nodes, as Ray tells of them."""
        draining = state.get_draining_nodes()
        self._drained |= set(draining)
        return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in draining]

    def was_meant_to_go(self, actor_id: str) -> bool:
        """Whether the node of an actor that has died was being drained, preempted or stopped."""
        node_id = (actors(actor_id).get("Address") or {}).get("NodeID")
        if node_id in self._drained:
            return True
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            node = next((node for node in ray.nodes() if node["NodeID"] == node_id), None)
            if node is None:
                return False
            if not node["Alive"]:
                return node["DeathReason"] in _MEANT
            time.sleep(_POLL_SECONDS)
        return False
