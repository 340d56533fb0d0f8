"""What should an autoscaler provide? Room for the trials of all sweeps that are driven.

Drivers propose only what living nodes hold, so nothing ever waits in Ray for a node to come: somebody has to
ask. Ray keeps one request for the whole cluster, that of who asked last. Every runner asks for the same, as
long as nothing is refused; then each finds by itself how much is granted, and they grow the cluster slower.
A sweep that waits for its driver asks for nothing yet, since it could not use what came.
"""

from collections.abc import Mapping, Sequence

from ray.autoscaler.sdk import request_resources
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]  # made at run time
from ray.experimental.internal_kv import internal_kv_get_gcs_client  # what was refused is told nowhere else

from care_sweep.store import DemandRecord

__all__ = ["Autoscaler", "bundles"]

_MOST_BUNDLES = 1000


class Autoscaler:
    """Ray's autoscaler, as one runner asks it. Where a cluster has none, nobody hears it.

    It holds at least what was asked for last, so what is asked for are all trials, those that run included.
    Version 1 provides what it can of that. Version 2 provides all or nothing: refused, the runner asks for
    half as much, then for one trial more at each look, and has another sweep come first.
    """

    def __init__(self) -> None:
        self._most = _MOST_BUNDLES
        self._num_asked = 0
        self._first = 0

    def ask(self, demands: Sequence[DemandRecord]) -> None:
        """Ask for what the active sweeps want. Each time anew, for a head that dies may forget it."""
        num_refused = _num_refused()
        if 0 < num_refused <= self._num_asked:  # else it has not seen yet that less was asked for
            self._most = max(1, num_refused // 2)
            self._first += 1
        else:
            self._most = min(self._most + 1, _MOST_BUNDLES)
        first = self._first % max(1, len(demands))
        asked = bundles([*demands[first:], *demands[:first]])[: self._most]
        request_resources(bundles=asked)
        self._num_asked = len(asked)


def bundles(demands: Sequence[DemandRecord]) -> list[dict[str, float]]:
    """What each trial wants that could run at once, sweep after sweep: at most 1,000 in all.

    Of a sweep that leaves its GPUs to us nothing is known yet but its CPUs: the node that comes shows whether
    there are any. One whose quota is spent may begin none.
    """
    left = {one.token_id: one.max_concurrent_trials for one in demands}
    most = max(1, _MOST_BUNDLES // max(1, len(demands)))
    found: list[dict[str, float]] = []
    for one in demands:
        number, limit = 0 if one.is_quota_spent else min(one.num_wanted, most), left[one.token_id]
        if one.token_id is not None and limit is not None:
            number = min(number, limit)
            left[one.token_id] = limit - number
        found += [_bundle(one)] * number
    return found[:_MOST_BUNDLES]


def _bundle(demand: DemandRecord) -> dict[str, float]:
    wanted: Mapping[str, float | None] = {"CPU": demand.cpus_per_trial, "GPU": demand.gpus_per_trial}
    return {name: float(amount) for name, amount in wanted.items() if amount}


def _num_refused() -> int:
    """How many bundles were asked for that version 2 of the autoscaler cannot provide."""
    status = GetClusterStatusReply.FromString(internal_kv_get_gcs_client().get_cluster_status())
    refused = status.autoscaling_state.infeasible_cluster_resource_constraints
    return sum(request.count for constraint in refused for request in constraint.resource_requests)
