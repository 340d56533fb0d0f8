"""What a sweep demands of a cluster, but for what a test says."""

from typing import Any

from care_sweep.store import DemandRecord


def demand(sweep_id: str, **changes: Any) -> DemandRecord:
    fields = {
        "priority": 1.0,
        "cpus_per_trial": 1,
        "gpus_per_trial": 0.0,
        "num_wanted": 1000,
        "num_running": 0,
        "places": {},
        "share_seconds": 0.0,
        "token_id": None,
        "max_concurrent_trials": None,
        "is_quota_spent": False,
    }
    return DemandRecord(id=sweep_id, **{**fields, **changes})
