"""Do the cluster's workers have this code? It comes with their image, and not with a sweep.

Else each trial would fail by itself, one after the other, and say so where few look.
"""

import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

if TYPE_CHECKING:
    from care_sweep.run.conductor import Conductor
    from care_sweep.run.nodes import Nodes

__all__ = ["await_same_version", "own_version", "unfit"]

_PACKAGE = "care-sweep"
_ANSWER_SECONDS = 15.0
_PAUSE_SECONDS = 5.0


def own_version() -> str:
    """That of this process."""
    return version(_PACKAGE)


def await_same_version(conductor: "Conductor", nodes: "Nodes") -> None:
    """Return once every node that stays has this version, or the sweep is over; it says what it waits for.

    Workers of nodes that come later look themselves.
    """
    has_complained, own = False, own_version()
    while (said := unfit(_versions_elsewhere(nodes.staying()), own)) and not conductor.is_finished:
        conductor.explain(said)
        has_complained = True
        time.sleep(_PAUSE_SECONDS)
        conductor.look()
    if has_complained:
        conductor.explain(None)


def unfit(versions: Mapping[str, str | None], own: str) -> str | None:
    """What is wrong with hosts of these versions, None being no version, where the driver has its own."""
    wrong = {host: found for host, found in versions.items() if found != own}
    if not wrong:
        return None
    which = ", ".join(f"{host} has {found or 'none'}" for host, found in sorted(wrong.items()))
    return f"waiting: the driver has {_PACKAGE} {own}, but {which}; give all nodes the same image"


def _versions_elsewhere(nodes: Sequence[Mapping[str, Any]]) -> Mapping[str, str | None]:
    """By host; this one has the driver's own. Who does not answer is left out: it may just be going."""

    def look() -> str | None:  # sent as it is, since a worker may have nothing of this package
        try:
            return version(_PACKAGE)
        except PackageNotFoundError:
            return None

    own = ray.get_runtime_context().get_node_id()
    looking = {}
    for node in nodes:
        if node["NodeID"] != own:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(look).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
            looking[f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})"] = task.remote()
    deadline, found = time.monotonic() + _ANSWER_SECONDS, {}
    for host, answer in looking.items():
        try:
            found[host] = ray.get(answer, timeout=max(0.0, deadline - time.monotonic()))
        except (RayError, GetTimeoutError):
            continue
    return found
